"""What one item of a data set is known by."""

from typing import NamedTuple


class ItemRecord(NamedTuple):
    """What tells an item, and its state, from another without reading it.

    Attributes:
        name: Its name within the data set; of a file in a folder, the path from there, with `/`.
        size: Bytes of the file, 0 for what is no file.
        modified: When the file was last changed, in nanoseconds since 1970, 0 for what is no file.
    """

    name: str
    size: int
    modified: int
