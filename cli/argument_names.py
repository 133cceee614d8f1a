"""The names of a call's arguments in the place of keys of an experiment file.

A call from Python runs the stages on the tables that a file would hold, so that an error names a key of a table:
`experiment: student[0].train.keep`. Here, where the call ends, its four parts get the names of the arguments, in Python:
`distill: keep`. `KEYS` has every key that a call fills; what is no key of a file is left as it is.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Final

from ..storage.errors import BadDataError, ConfigError, LogitStoreError

_CACHE: Final = (
    "encoding",
    "views",
    "batch_size",
    "precision",
    "block_rows",
    "workers",
    "threads",
    "compile",
    "channels_last",
    "augment",
)
_STUDENT: Final = (
    "name",
    "teachers",
    "targets",
    "mean",
    "temperature",
    "hard_weight",
    "loss",
    "standardise",
    "views",
    "rows",
)
_TRAIN: Final = (
    "lr",
    "epochs",
    "optimizer",
    "momentum",
    "weight_decay",
    "batch_size",
    "schedule",
    "warmup_epochs",
    "label_smoothing",
    "clip_norm",
    "ema",
    "precision",
    "compile",
    "workers",
    "checkpoint_every",
    "validation",
    "validate_every",
    "keep",
    "best_by",
    "log",
)
_CLUSTER: Final = (
    "teachers",
    "clusters",
    "classes_per_cluster",
    "temperature",
    "seed",
    "method",
    "restarts",
    "normalise",
    "disjoint",
    "memory",
    "name",
)

KEYS: Final[Mapping[str, Mapping[str, str]]] = {
    "cache": {
        "teacher": "teachers",
        "teacher.name": "teachers",
        "transfer_set": "dataset",
        "evaluation_set": "evaluation",
        "card": "card",
        **{f"transfer_set.{key}": key for key in ("order", "seed", "store_inputs", "num_classes")},
        **{f"cache.{key}": key for key in _CACHE},
        "cache.augment.seed": "augment_seed",
        "cache.augment.first_view": "first_view",
    },
    "cluster": {"cluster.teacher": "teachers", **{f"cluster.{key}": key for key in _CLUSTER}},
    "distill": {
        "transfer_set": "dataset",
        "evaluation_set": "evaluation",
        "validation_set": "validation",
        "cache.augment": "augment",
        "student": "student",
        **{f"student.{key}": key for key in _STUDENT},
        **{f"student.train.{key}": key for key in _TRAIN},
        "student.train.seeds": "seed",
    },
    "evaluate": {"evaluation_set": "dataset"},
}
"""By call: the argument for each key of an experiment file that the call fills."""

_PLACES: Final = (
    # The words with which the stages begin a place, and the table that is meant.
    (r"^experiment: ", ""),
    (r"^(?:dataset|transfer_set)(?:: |\.)(?=order|seed|store_inputs|num_classes)", "transfer_set."),
    (r"^(cache|cluster): ", r"\1."),
    (r"^augment: ", "cache.augment."),
    (r"^distill: (?=train\.)", "student."),
    (r"^distill: seeds", "student.train.seeds"),
    (r"^student '[^']*': (?=train\.|rows$)", "student."),
    (r"\b(student|teacher)\[\d+\]", r"\1"),
    (r"\bseeds\[0\]", "seeds"),
)
_WORDS: Final = (
    (r"neither validation nor \[validation_set\]", "validation=None"),
    (r"no validation\b(?! )", "validation=None"),
    (r" between 0 and 1, or 'evaluation_set'", " between 0 and 1, or labelled examples"),
    (
        r"write one of these, or remove it and add \[validation_set\]",
        "pass validation=0.1, or (inputs, labels)",
    ),
    (r", or add \[validation_set\]", ", or labelled examples"),
    (r"validation = SHARE", "validation=0.1"),
    (r"a view below cache\.views = (\d+)", r"a view below \1, the number of views in the store"),
    (r"raise cache\.views, or take a lower view", "pass a lower view, or 'all' or 'cycle'"),
    (r"\bcorrect 0$", "correct seed"),
    (r"write 0 without quotes", "write seed without quotes"),
    (r"\btrue or false\b", "True or False"),
    (r"\btrue, false or ", "True, False or "),
    (r"--stop-below", "stop_below"),
    (r"--reuse OLD_STORE", "reuse=OLD_STORE"),
    (r"--reuse", "reuse"),
    (r"another --out", "another folder"),
    (r"\(--out, or --models\)", "(another folder)"),
    (r"(?:run|use) the same command", "make the same call"),
    (r"\[(?:transfer_set|cache|evaluation_set|validation_set)\] (?=[a-z_]+\b)", ""),
    (r"\[(transfer_set|evaluation_set|validation_set)\]", r"\1"),
)
_TABLE = re.compile(r"\{ ([^{}]*?) \}")
_PAIR = re.compile(r"(\w+) = ([^,]+)")


@contextlib.contextmanager
def naming_arguments(call: str) -> Iterator[None]:
    """Name the arguments of a call in the errors of the block, which stay the same objects. call: a key of `KEYS`."""
    try:
        yield
    except LogitStoreError as error:
        if isinstance(error, (ConfigError, BadDataError)):  # those of a store and its files begin with a path
            error.where = _place(error.where, call)
        error.where = re.sub(r"^--reuse\b", "reuse", error.where)
        error.expected, error.found, error.remedy = (
            in_python(text, call) for text in (error.expected, error.found, error.remedy)
        )
        error.args = (error.where, error.expected, error.found, error.remedy)
        if notes := getattr(error, "__notes__", None):
            error.__notes__ = [in_python(note, call) for note in notes]
        raise


def _place(where: str, call: str) -> str:
    """Return a place in which an argument stands for its key.

    >>> _place("experiment: student[0].train.keep", "distill"), _place("dataset: order", "cache")
    ('distill: keep', 'cache: order')
    >>> _place("transfer_set, example 3", "cache"), _place("augment: seed", "cache")
    ('dataset, example 3', 'cache: augment_seed')
    """
    for pattern, table in _PLACES:
        where = re.sub(pattern, table, where)
    keys = KEYS[call]
    return f"{call}: {keys[where]}" if where in keys else in_python(where, call)


def in_python(text: str, call: str) -> str:
    """Return a text with arguments for keys, and with values as Python writes them.

    >>> in_python("add train.lr; set cache.encoding = { transform = { max_kl = 1e-3 } }", "cache")
    'add train.lr; set encoding={"transform": {"max_kl": 1e-3}}'
    >>> in_python("lower train.lr (now 1e+30), or add warmup_epochs", "distill")
    'lower lr (now 1e+30), or add warmup_epochs'
    """
    for pattern, words in _WORDS:
        text = re.sub(pattern, words, text)
    keys = KEYS[call]
    # `train.lr` stands for `student.train.lr` where there is one student.
    short = {path.removeprefix("student."): name for path, name in keys.items() if "." in path}
    for path, name in sorted({**keys, **short}.items(), key=lambda item: -len(item[0])):
        if "." in path or path.endswith("_set"):
            text = re.sub(rf"(?<![\w./']){re.escape(path)}(?![\w/'-])", name, text)
    while _TABLE.search(text):
        text = _TABLE.sub(lambda found: "\x02" + _PAIR.sub(r'"\1": \2', found[1]) + "\x03", text)
    text = text.replace("\x02", "{").replace("\x03", "}")
    names = "|".join(sorted({*keys.values(), r"loss\.\w+"}, key=len, reverse=True))
    return re.sub(rf"\b({names}) = (?=\S)", r"\1=", text)
