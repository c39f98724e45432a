"""Conditions on sizes that may be symbols under ``torch.compile(dynamic=True)``."""

from __future__ import annotations

from torch.fx.experimental.symbolic_shapes import statically_known_true


def statically_true(condition: bool) -> bool:
    """Whether a condition on sizes holds for every size that the code is compiled for.

    In eager code and in code compiled for one size this is the condition itself. In code compiled for changing sizes it
    is False unless the condition always holds: an ``if`` on the condition itself would make PyTorch compile again for
    the sizes where the answer differs.
    """
    return bool(statically_known_true(condition))
