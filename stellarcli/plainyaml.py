"""YAML as far as people write it by hand: values, lists and mappings, nothing clever.

Aliases, with which ten lines stand for 10^9 values, tags and merges are refused, and so
is what is nested deeper or longer than any recipe or configuration.
"""

from __future__ import annotations

from typing import Any

from stellarcli.errors import one_line

LARGEST = 1 << 20  # characters
DEEPEST = 20  # lists and mappings within each other


class PlainYAMLError(ValueError):
    """The text isn't YAML, or isn't plain; the reason in one line."""


def parse(text: str) -> Any:
    """Read a text.

    Parameters
    ----------
    text : str

    Returns
    -------
    object
        Of lists, dictionaries, text, numbers, booleans, dates and None.

    Raises
    ------
    PlainYAMLError
        If that isn't what it holds.
    """
    import yaml

    if len(text) > LARGEST:
        raise PlainYAMLError(f"{len(text)} characters are more than {LARGEST}")
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise PlainYAMLError("anchors and aliases (& and *) are not taken")
            if getattr(event, "tag", None):
                raise PlainYAMLError(f"tags such as {event.tag!r:.80} are not taken")
            if depth > DEEPEST:
                raise PlainYAMLError(f"it is nested deeper than {DEEPEST}")
        return yaml.safe_load(text)
    except PlainYAMLError:
        raise
    except Exception as error:  # wrong dates, endless integers: any kind is raised
        raise PlainYAMLError(one_line(error)[:300]) from None
