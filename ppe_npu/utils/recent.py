"""What was made for the last few keys, so that it need not be made again."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any


class Recent:
    """Keeps what was made for the last `most` keys. What it gives is shared: nobody may change it."""

    def __init__(self, most: int = 8):
        self.most = most
        self._values: OrderedDict[Hashable, Any] = OrderedDict()

    def made(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What make() gave for this key; it is called if that is not among the last."""
        if key not in self._values:
            self._values[key] = make()
        self._values.move_to_end(key)
        while len(self._values) > self.most:
            self._values.popitem(last=False)
        return self._values[key]
