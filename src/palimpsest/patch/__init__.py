"""The edit as a value: applied, added up, taken out, saved."""

from palimpsest.patch.edits import Dense as Dense
from palimpsest.patch.edits import Edit as Edit
from palimpsest.patch.edits import LowRank as LowRank
from palimpsest.patch.edits import Replacement as Replacement
from palimpsest.patch.edits import Rows as Rows
from palimpsest.patch.patch import Patch as Patch
