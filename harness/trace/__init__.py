"""The trace file: one HDF5 file, many runs, crash-safe while it grows, readable with plain h5py."""

from __future__ import annotations

from .bulk import read_together as read_together
from .bulk import shelf as shelf
from .reader import Run as Run
from .reader import Trace as Trace
from .record import Record as Record
from .records import Records as Records
from .records import changes as changes
from .records import column as column
from .repair import Repaired as Repaired
from .repair import repair as repair
from .run_writer import RunWriter as RunWriter
from .writer import TraceWriter as TraceWriter
