"""A trained model at work: descriptions for a catalog that has none.

python run.py --pipeline describe --config shop.yaml
"""
