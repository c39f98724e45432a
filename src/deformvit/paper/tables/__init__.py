"""The paper's tables as data. Every row is a configuration of ours, with the published values.

``deformvit table NUMBER`` prints them beside what is measured.
"""

from deformvit.paper.tables import classification, nano, systems
from deformvit.paper.tables.types import Column, DataSet, Row, Table

__all__ = ["NANO_TABLES", "TABLES", "Column", "DataSet", "Row", "Table"]

TABLES: dict[str, Table] = classification.TABLES | systems.TABLES
"""By number: 2 to 9, fig4 (Figure 4) and neighbours."""

NANO_TABLES: dict[str, Table] = nano.TABLES
"""The comparisons that ``deformvit ablate`` trains, at dat_nano's size: main, 6, 7 and fig4."""
