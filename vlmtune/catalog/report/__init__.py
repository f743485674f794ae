"""The pages about a catalog: the data report, and the ledger with thumbnails."""
