"""stub"""
from dataclasses import dataclass
COLOURS = ("red","orange","yellow","green","blue","purple","pink","grey")
PATTERNS = ("plain","striped","dotted","checked","zigzag")
OBJECTS = ("mug","bowl","vase","lamp","clock","chair","bag","cushion")
@dataclass(frozen=True)
class Scene:
    colour: str
    pattern: str
    object: str
