"""Repair of a store: the cure of every fault of `diagnosis` that has one.

1. A file that follows from others is rebuilt, and only to the sha256 that it had: records of the log, the root's and
   the parts' group metadata, commit records, `seal.bin`.
2. A damaged file that its writer makes again is removed: shards, chunks of small arrays, metadata of arrays.
3. An unsealed part is mended as its next writer would mend it (`recovery`), but by the sha256 of its records.
4. `spec.json`, `seal.json` and the last record of the log come back from a copy only.

An intact file is never removed, nor is one that cannot be read. A part is changed only while it is held alone, so
that no writer is at work on it (`lease`).
"""

import contextlib
from pathlib import Path

from ..backends.local import Folder
from ..errors import LogitStoreError
from ..format.constants import ROOT_METADATA
from ..parts.journal import log_key
from ..parts.root import open_root
from ..progress import Progress, silent
from .diagnosis import Diagnosis, guarded
from .mending import Mending, Repairs
from .root_faults import root_faults


def repair(path: Path, *, dry_run: bool = False, progress: Progress = silent) -> Repairs:
    """Mend the files of a store that can be mended, and make room for those that can be made again.

    Raises NotAStoreError if the path holds no store, WriterBusy if a writer is at work on a part that is to be changed,
    StorageError if it cannot be written. Run again after that, it resumes.
    """
    top = Folder(path)
    if not top.exists(log_key(0)) and not top.exists(ROOT_METADATA):
        open_root(path)  # raises the error that fits
    mending = Mending(top, Repairs(dry_run))
    done = mending.done
    for fault in guarded("", str(path), root_faults(top, rebuild=True)):
        mending.cure(fault)
    try:
        root = open_root(path)
    except LogitStoreError as error:
        if not done.beyond and not (dry_run and done.rebuilt):
            done.beyond.append(error)
        return done
    diagnosis = Diagnosis(root, deep=True, progress=progress, mending=mending)
    sealed = {record.part for record in root.records}
    with contextlib.closing(diagnosis.faults()) as faults:
        for fault in faults:
            mending.cure(fault)
            if fault.part in sealed:
                mending.note_unmade(fault)
    done.unsealed, done.strays = diagnosis.unsealed, diagnosis.strays
    if not dry_run:
        root.tidy_up()
    return done
