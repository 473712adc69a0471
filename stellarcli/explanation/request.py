"""What to explain, and how."""

from __future__ import annotations

from dataclasses import dataclass, field

from stellarcli import checkpoint
from stellarcli.errors import unknown
from stellarcli.explanation.windows import Windows
from stellarcli.labels import Label
from stellarcli.parallel import available_cores


@dataclass(frozen=True)
class Request:
    """What to explain, and how.

    Attributes
    ----------
    model : str
        Shipped name or file.
    method : str
        Key of `METHODS`.
    target : tuple of str
        Labels; all of the model by default.
    windows : Windows
        Of occlusion; rankings of the other methods use their width and range, too.
    stage : str
        Of a convolutional network, for ``cam``; chosen by default.
    nodes : int
        Points of the integral, for ``gradient``.
    images : str
        Directory or table of images, for models that see them.
    keep_flagged : bool
        Use spectra that are not to be trusted, too.
    device : str
    workers : int
    """

    model: str = checkpoint.DEFAULT
    method: str = "occlusion"
    target: tuple[str, ...] = ()
    windows: Windows = field(default_factory=Windows)
    stage: str = ""
    nodes: int = 32
    images: str = ""
    keep_flagged: bool = False
    device: str = "cpu"
    workers: int = field(default_factory=available_cores)

    def choose(self, labels: list[Label]) -> list[int]:
        """Return which of a model's labels are to be explained.

        Raises
        ------
        UsageError
            If the model lacks one.
        """
        names = [label.name for label in labels]
        for name in self.target:
            if name not in names:
                raise unknown(f"label of {self.model}", name, names)
        return [n for n, name in enumerate(names) if name in (self.target or names)]
