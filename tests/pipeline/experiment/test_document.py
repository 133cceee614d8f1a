"""Laws of the experiment file: what is right is kept, what is wrong is one line that says where."""

import math
import time
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.messages import Sentences

from logitstore.pipeline.experiment.document import Experiment, load_experiment, parse_experiment
from logitstore.pipeline.experiment.networks import SOURCES
from logitstore.pipeline.experiment.schema import Table
from logitstore.pipeline.experiment.tables import Student
from logitstore.storage.encodings import named
from logitstore.storage.errors import ConfigError

WHOLE = """
[transfer_set]
factory = "logitstore.pipeline.datasets:idx"
args = { images = "train-images.gz", labels = "train-labels.gz" }

[evaluation_set]
factory = "logitstore.pipeline.datasets:idx"

[[teacher]]
name = "wide"
factory = "logitstore.pipeline.models:mlp"
args = { hidden = [1200, 1200], dropout = 0.5 }
train = { lr = 1e-3, epochs = 60, augment = { factory = "logitstore.pipeline.augment:shift" } }
members = 3
seed = 10

[[teacher]]
name = "deep"
factory = "logitstore.pipeline.models:mlp"
weights = "weights/deep.safetensors"

[cache]
views = 4
augment = { factory = "logitstore.pipeline.augment:shift", args = { pixels = 2 } }

[cluster]
teacher = "deep"
clusters = 8
classes_per_cluster = 4

[[student]]
name = "small"
factory = "logitstore.pipeline.models:mlp"
args = { hidden = [800, 800] }
teachers = { wide = 1.0, deep = 3 }
temperature = 20.0
train = { optimizer = "sgd", lr = 1, momentum = 0.9, epochs = 60, schedule = "cosine", seeds = [0, 1, 2] }

[[student]]
name = "small-hard"
factory = "logitstore.pipeline.models:mlp"
targets = "hard"
views = 3
train = { lr = 1e-3, epochs = 60 }
"""


def parse(text: str) -> Experiment:
    return parse_experiment(tomllib.loads(text), where="a.toml", base=Path("folder"))


def refused(text: str) -> ConfigError:
    """The error, of one line, that `text` is refused with."""
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    return caught.value


def message(text: str) -> str:
    """Its line."""
    return str(refused(text))


def test_the_whole_form_is_read() -> None:
    experiment = parse(WHOLE)
    assert experiment.transfer_set.order == "shuffled"
    assert experiment.transfer_set.store_inputs
    assert experiment.teachers[0].args == {"hidden": [1200, 1200], "dropout": 0.5}
    assert experiment.cache.encoding == "float16"
    assert experiment.cache.augment is not None
    assert experiment.cache.augment.first_view == 1
    assert experiment.cluster is not None
    assert experiment.cluster.part_name == "deep-8x4"
    small, hard = experiment.students
    assert small.train.seeds == (0, 1, 2)
    assert small.train.lr == 1.0
    assert small.views == "cycle"
    assert hard.train.seeds == (0,)
    assert hard.teachers is None
    assert experiment.base == Path("folder")


def test_the_classes_of_the_transfer_set_may_be_stated() -> None:
    assert parse(WHOLE).transfer_set.num_classes is None
    for number in (2, 5):
        text = WHOLE.replace("[transfer_set]", f"[transfer_set]\nnum_classes = {number}")
        assert parse(text).transfer_set.num_classes == number
    for bad in ("1", "true", "2.5", '"5"'):
        with pytest.raises(ConfigError, match=r"a\.toml: transfer_set\.num_classes: expected "):
            parse(WHOLE.replace("[transfer_set]", f"[transfer_set]\nnum_classes = {bad}"))


def test_members_are_expanded_with_a_seed_each() -> None:
    members = parse(WHOLE).teacher_members()
    assert [(member.name, member.seed, member.weights) for member in members] == [
        ("wide-0", 10, None),
        ("wide-1", 11, None),
        ("wide-2", 12, None),
        ("deep", 0, Path("folder/weights/deep.safetensors")),
    ]
    assert members[0].teacher.name == "wide"


def test_each_member_has_its_own_weights_file() -> None:
    text = WHOLE.replace(
        'weights = "weights/deep.safetensors"', 'weights = "/abs/deep-{member}.safetensors"\nmembers = 2'
    ).replace('teacher = "deep"', 'teacher = "deep-1"')
    weights = [member.weights for member in parse(text).teacher_members()]
    assert weights[3:] == [Path("/abs/deep-0.safetensors"), Path("/abs/deep-1.safetensors")]


def test_a_teachers_weight_is_shared_by_its_members() -> None:
    experiment = parse(WHOLE)
    shares = experiment.teacher_weights(experiment.students[0])
    assert shares == pytest.approx({"wide-0": 1 / 12, "wide-1": 1 / 12, "wide-2": 1 / 12, "deep": 3 / 4})
    assert experiment.teacher_weights(experiment.students[1]) == {}


def test_a_list_of_teachers_means_equal_weights() -> None:
    text = WHOLE.replace("teachers = { wide = 1.0, deep = 3 }", 'teachers = ["deep", "wide-1"]')
    experiment = parse(text)
    assert experiment.teacher_weights(experiment.students[0]) == {"deep": 0.5, "wide-1": 0.5}


@given(
    st.dictionaries(st.sampled_from(["wide", "wide-0", "wide-2", "deep"]), st.floats(1e-3, 1e3), min_size=1)
)
def test_shares_sum_to_one_and_ignore_scale(weights: dict[str, float]) -> None:
    document = tomllib.loads(WHOLE)

    def shares(scale: float) -> dict[str, float]:
        document["student"][0]["teachers"] = {name: scale * weight for name, weight in weights.items()}
        experiment = parse_experiment(document, where="a.toml", base=Path())
        return experiment.teacher_weights(experiment.students[0])

    assert math.isclose(sum(shares(1.0).values()), 1.0)
    assert shares(1.0) == pytest.approx(shares(7.0))


def test_an_experiment_survives_its_own_dump() -> None:
    experiment = parse(WHOLE)
    dump = experiment.model_dump(mode="json", by_alias=True, exclude_unset=True)
    again = parse_experiment(dump, where="dump", base=Path("folder"))
    assert again == experiment
    changed = WHOLE.replace("temperature = 20.0", "temperature = 19.0")
    assert parse(changed) != experiment


@pytest.mark.parametrize(
    ("old", "new", "where", "expected", "found", "remedy"),
    [
        pytest.param(
            "temperature = 20.0",
            "temprature = 20.0",
            "student[0].temprature",
            "a known key",
            "'temprature'",
            "did you mean 'temperature'?",
            id="misspelt key",
        ),
        pytest.param(
            "[cache]", "[cash]", "cash", "a known key", "'cash'", "did you mean 'cache'?", id="misspelt table"
        ),
        pytest.param(
            "lr = 1, momentum",
            "lr = -1.0, momentum",
            "student[0].train.lr",
            "a number above 0",
            "-1.0",
            "correct lr",
            id="negative rate",
        ),
        pytest.param(
            "lr = 1, momentum",
            "lr = nan, momentum",
            "student[0].train.lr",
            "a finite number",
            "nan",
            "correct lr",
            id="NaN rate",
        ),
        pytest.param(
            "lr = 1, momentum",
            'lr = "1", momentum',
            "student[0].train.lr",
            "a number",
            "'1'",
            "write lr without quotes",
            id="quoted rate",
        ),
        pytest.param(
            "lr = 1, momentum",
            "momentum",
            "student[0].train.lr",
            "a value",
            "no such key",
            "add lr",
            id="missing rate",
        ),
        pytest.param(
            "dropout = 0.5",
            "dropout = inf",
            "teacher[0].args.dropout",
            "a finite number",
            "inf",
            "write a finite number",
            id="infinite argument",
        ),
        pytest.param(
            "dropout = 0.5",
            "day = 2015-03-09",
            "teacher[0].args.day",
            "a string, number, boolean, list or table",
            "date '2015-03-09'",
            "quote it",
            id="date as argument",
        ),
        pytest.param(
            "views = 4",
            "views = 4\nencoding = { max_kl = 0 }",
            "cache.encoding",
            "max_kl to be a positive number of nats",
            "0.0",
            "choose one, such as 1e-3",
            id="max_kl of 0",
        ),
        pytest.param(
            "views = 4",
            "views = 4\nencoding = { transform = { max_kl = 1e-2, temperatures = [0.5, 1] } }",
            "cache.encoding",
            "temperatures to be 1 to 16 ascending temperatures from 1 to 1000",
            "[0.5, 1.0]",
            "leave them out for 1, 2, 4 and 8, or use { max_kl = …, min_temperature = … }",
            id="temperature below 1",
        ),
        pytest.param(
            "views = 4",
            "views = 4\nencoding = { transform = { max_kl = 1e-2, rank = 64 } }",
            "cache.encoding",
            "transform to be a table of max_kl and, optionally, temperatures, rows, seed, peak",
            "rank",
            "write { transform = { max_kl = 1e-2 } }",
            id="unknown key of a transform",
        ),
        pytest.param(
            "views = 4",
            "views = 4\nencoding = { top_p = 0.9 }",
            "cache.encoding",
            named.EXPECTED,
            "{ top_p = … }",
            "choose one of these",
            id="unknown encoding",
        ),
        pytest.param(
            "[[student]]",
            "[combine]\nencoding = { transform = { rows = 9 } }\n\n[[student]]",
            "combine.encoding",
            "transform to be a table of max_kl and, optionally, temperatures, rows, seed, peak",
            "no max_kl",
            "write { transform = { max_kl = 1e-2 } }",
            id="unknown encoding of a combination",
        ),
        pytest.param(
            "views = 4",
            "views = 1",
            "cache.augment",
            "first_view below views = 1",
            "first_view = 1",
            "raise views, or set first_view = 0 to augment the only one",
            id="no view left to augment",
        ),
        pytest.param(
            "views = 3",
            "views = 4",
            "student[1].views",
            "a view below cache.views = 4",
            "4",
            "raise cache.views, or take a lower view",
            id="view beyond the cache",
        ),
        pytest.param(
            "views = 3",
            'views = "al"',
            "student[1].views",
            "'all', 'cycle' or the number of a view, from 0",
            "'al'",
            "write one of these",
            id="misspelt views",
        ),
        pytest.param(
            'name = "small-hard"',
            'name = "small"',
            "student[1].name",
            "a name of its own",
            "'small', which student[0] has",
            "rename one of them",
            id="student named twice",
        ),
        pytest.param(
            'name = "deep"',
            'name = "wide-2"',
            "teacher[1].name",
            "a name of its own",
            "'wide-2', which teacher[0] has",
            "rename one of them",
            id="member named twice",
        ),
        pytest.param(
            'name = "deep"',
            'name = "Deep"',
            "teacher[1].name",
            "a name of 1 to 64 of a-z 0-9 . _ - that begins with a letter or digit",
            "'Deep'",
            "rename it",
            id="capital in a name",
        ),
        pytest.param(
            "wide = 1.0, deep = 3",
            "wide = 1.0, dep = 3",
            "student[0].teachers",
            "a teacher's name",
            "'dep'",
            "did you mean 'deep'?",
            id="unknown teacher",
        ),
        pytest.param(
            "wide = 1.0, deep = 3",
            "wide = 1.0, deep = 0",
            "student[0].teachers.deep",
            "a number above 0",
            "0",
            "correct deep",
            id="weight of 0",
        ),
        pytest.param(
            "teachers = { wide = 1.0, deep = 3 }",
            "teachers = []",
            "student[0].teachers",
            "a table of weights such as { wide = 1.0 }, or a list of teachers",
            "[]",
            "name at least one teacher",
            id="no teacher listed",
        ),
        pytest.param(
            "teachers = { wide = 1.0, deep = 3 }",
            "",
            "student[0].teachers",
            "teachers of the soft targets",
            "no such key",
            "add teachers = { NAME = 1.0 }, or set targets = 'hard'",
            id="soft targets without teachers",
        ),
        pytest.param(
            'targets = "hard"',
            'targets = "hard"\ntemperature = 4.0',
            "student[1].temperature",
            "targets = 'soft'",
            "targets = 'hard'",
            "remove temperature",
            id="temperature of hard targets",
        ),
        pytest.param(
            'teacher = "deep"',
            'teacher = "wide"',
            "cluster.teacher",
            "the name of one teacher",
            "'wide', which has several members",
            "did you mean 'wide-0'?",
            id="cluster of several members",
        ),
        pytest.param(
            'weights = "weights/deep.safetensors"',
            "",
            "teacher[1]",
            "one of weights, train",
            "no such key",
            "add weights or train; write weights = 'factory' if the factory loads them",
            id="neither weights nor train",
        ),
        pytest.param(
            'weights = "weights/deep.safetensors"',
            'weights = "factory"\nmembers = 2',
            "teacher[1].members",
            "one network of a factory that loads its weights",
            "2",
            "write a [[teacher]] for each, with its args",
            id="several of a ready teacher",
        ),
        pytest.param(
            'weights = "weights/deep.safetensors"',
            'weights = "factory"\nallow_pickle = true',
            "teacher[1].allow_pickle",
            "a file of weights beside allow_pickle",
            "weights = 'factory'",
            "remove allow_pickle",
            id="pickles of a ready teacher",
        ),
        pytest.param(
            'weights = "weights/deep.safetensors"',
            'train = { lr = 1, epochs = 1 }\nweights_key = "ema"',
            "teacher[1].weights_key",
            "a file of weights beside weights_key",
            "no weights",
            "remove weights_key",
            id="a key without a file",
        ),
        pytest.param(
            'weights = "weights/deep.safetensors"',
            'weights = "deep.safetensors"\nmembers = 2',
            "teacher[1].weights",
            "a file name with {member} in it",
            "'deep.safetensors'",
            "write it like 'wide-{member}.safetensors', or remove members",
            id="one file for two members",
        ),
        pytest.param(
            "epochs = 60, augment",
            "epochs = 60, seeds = [1], augment",
            "teacher[0].train.seeds",
            "a known key",
            "'seeds'",
            "set seed and members of the teacher",
            id="seeds of a teacher",
        ),
        pytest.param(
            'optimizer = "sgd"',
            'optimizer = "adam"',
            "student[0].train.momentum",
            "optimizer = 'sgd'",
            "optimizer = 'adam'",
            "remove momentum",
            id="momentum of Adam",
        ),
        pytest.param(
            'optimizer = "sgd"',
            'optimizer = "lion"',
            "student[0].train.optimizer",
            "'sgd', 'adam' or 'adamw'",
            "'lion'",
            "correct optimizer",
            id="unknown optimizer",
        ),
        pytest.param(
            "seeds = [0, 1, 2]",
            "seeds = [0, 1, 0]",
            "student[0].train.seeds",
            "every value once",
            "0 2 times",
            "remove the repetition",
            id="seed twice",
        ),
        pytest.param(
            "seeds = [0, 1, 2]",
            "seeds = []",
            "student[0].train.seeds",
            "at least 1 of them",
            "[]",
            "correct seeds",
            id="no seed",
        ),
        pytest.param(
            "[cluster]",
            "[specialists]\ntrain = { lr = 0.1, epochs = 1, seeds = [0] }\n[cluster]",
            "specialists.train.seeds",
            "a known key",
            "'seeds'",
            "set specialists.seed, which counts up from set to set",
            id="seeds of specialists",
        ),
        pytest.param(
            'logitstore.pipeline.augment:shift", args',
            'logitstore.pipeline.augment.shift", args',
            "cache.augment.factory",
            "'package.module:function'",
            "'logitstore.pipeline.augment.shift'",
            "write the module, a colon and the function's name",
            id="factory without a colon",
        ),
        pytest.param(
            "[evaluation_set]\nfactory",
            "[evaluation_set]\nargs = 3\nfactory",
            "evaluation_set.args",
            "a table",
            "3",
            "correct args",
            id="arguments that are no table",
        ),
    ],
)
def test_what_is_wrong_is_one_line_that_says_where(
    old: str, new: str, where: str, expected: str, found: str, remedy: str
) -> None:
    assert WHOLE.count(old) >= 1
    error = refused(WHOLE.replace(old, new, 1))
    assert (error.where, error.expected, error.found, error.remedy) == (
        f"a.toml: {where}",
        expected,
        found,
        remedy,
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param('optimizer = "sgd", lr = 1, momentum = 0.9', "lr = 1, momentum = 0.0", id="momentum"),
        pytest.param('targets = "hard"', 'targets = "hard"\ntemperature = 1.0', id="temperature"),
        pytest.param("[evaluation_set]", 'order = "as_is"\nseed = 0\n[evaluation_set]', id="seed"),
    ],
)
def test_a_key_at_its_default_needs_no_effect(old: str, new: str) -> None:
    assert WHOLE.count(old) >= 1
    parse(WHOLE.replace(old, new, 1))


def test_the_keys_of_every_effect_exist() -> None:
    def key_of(table: type[Table], key: str) -> Any:
        outer, _, inner = key.partition(".")
        kind = table.model_fields[outer].annotation if outer in table.model_fields else None
        return key_of(kind, inner) if inner and isinstance(kind, type) else kind

    tables = [Table]
    for table in tables:  # grows
        tables += table.__subclasses__()
    effects = [(table, effect) for table in tables for effect in table.effects]
    assert len(effects) >= 10
    for table, effect in effects:
        assert all(key_of(table, key) is not None for key in effect.keys)
        known = ("factory", *SOURCES) if effect.choice == "source" else get_args(key_of(table, effect.choice))
        assert set(effect.values) < set(known)
    assert key_of(Student, "loss.nmae") is None  # negative control


def problems(text: str) -> list[str]:
    """Return every line about a document, the first with the number of the others."""
    with pytest.raises(ConfigError) as caught:
        parse(text)
    return [str(caught.value), *getattr(caught.value, "__notes__", [])]


def test_every_problem_has_a_line(sentence: Sentences) -> None:
    """Values, a misspelt key, a key without effect, a missing one, in five tables."""
    text = WHOLE.replace("lr = 1, momentum", "momentum").replace("members = 3", "members = 0")
    text = text.replace("temperature = 20.0", "temprature = 20.0").replace('teacher = "deep"', "")
    text = text.replace("views = 4", 'views = "4"').replace(
        "epochs = 60, augment", "epochs = 60, seeds = [1], augment"
    )
    lines = problems(text)
    assert len(lines) == 6 and all("\n" not in line for line in lines)
    assert lines[0].endswith("(5 more problems after this one)")
    for line in lines:
        sentence(line)


def test_tables_that_disagree_have_a_line_each(sentence: Sentences) -> None:
    text = WHOLE.replace('teacher = "deep"', 'teacher = "wide"').replace("views = 4", "views = 2")
    text += '[[student]]\nname = "more"\nfactory = "a:b"\nteachers = ["dep"]\nviews = 7\n[student.train]\nlr = 1\nepochs = 1\n'
    for line in problems(text):
        sentence(line)


def test_a_misspelt_key_is_not_missing_as_well(sentence: Sentences) -> None:
    (line,) = problems(WHOLE.replace("lr = 1, momentum", "lrr = 1, momentum"))
    sentence(line)
    assert len(problems(WHOLE.replace("lr = 1, momentum", "xyz = 1, momentum"))) == 2  # negative control


def test_ten_problems_are_listed_and_further_ones_counted() -> None:
    many = WHOLE + "".join(f"[unknown{number}]\n" for number in range(13))
    lines = problems(many)
    assert len(lines) == 11 and lines[-1] == "a.toml: 3 more problems"
    assert lines[0].endswith("(12 more problems after this one)")
    assert len(problems(WHOLE + "".join(f"[unknown{number}]\n" for number in range(10)))) == 10


def test_a_file_without_a_teacher_is_refused() -> None:
    text = '[transfer_set]\nfactory = "a:b"\n'
    assert message(text) == "a.toml: teacher: expected a value, found no such key; add teacher"
    assert message(text + "[teacher]\nname = 'x'\n") == (
        "a.toml: teacher: expected a list, found { name = … }; head the table with [[teacher]]"
    )


def test_a_table_cannot_be_changed() -> None:
    experiment = parse(WHOLE)
    with pytest.raises(Exception, match="frozen"):
        experiment.cache = None  # type: ignore[misc,assignment]


# The file


def test_relative_names_are_relative_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(WHOLE)
    experiment = load_experiment(path)
    assert experiment.base == tmp_path
    assert experiment.teacher_members()[3].weights == tmp_path / "weights/deep.safetensors"


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_experiment(path)
    assert caught.value.exit_code == 64
    return str(caught.value).replace(str(path), "FILE")


def test_a_missing_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "a.toml") == (
        "FILE: expected an experiment file, found no such file or directory; check the path"
    )


def test_a_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path) == ("FILE: expected an experiment file, found is a directory; check the path")


def test_a_syntax_error_is_placed(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text("[transfer_set]\nfactory 'x'\n")
    assert refusal(path) == (
        "FILE: line 2, column 9: expected TOML, found a syntax error (expected '=' after a key in a key/value "
        "pair); correct this line or the one before"
    )


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(b"ab\xff")
    assert refusal(path) == ("FILE: expected UTF-8 text, found byte 0xff at offset 2; save the file as UTF-8")


scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner))


@given(st.data())
def test_no_document_escapes_as_another_error(data: st.DataObject) -> None:
    """Whatever stands anywhere: an experiment, or a ConfigError of one line."""
    document: Any = tomllib.loads(WHOLE)
    place: Any = document
    while True:
        keys = list(range(len(place))) if isinstance(place, list) else list(place)
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(values)
    try:
        parse_experiment(document, where="a.toml", base=Path())
    except ConfigError as error:
        assert "\n" not in str(error)
        assert str(error).startswith("a.toml: ")


LARGE: dict[str, tuple[str, str]] = {
    "lists without an end": ("x = " + "[" * 5000, "at most 32 levels of lists and tables, found more levels"),
    "lists in lists": ("x = " + "[" * 100 + "]" * 100, "at most 32 levels of lists and tables"),
    "tables in tables": ("x = " + "{a = " * 2000 + "1" + "}" * 2000, "at most 32 levels"),
    "a key of 20,000 names": (
        ".".join(["a"] * 20_000) + " = 1",
        "keys of at most 32 names, found a longer key in line 1",
    ),
    "a heading of 20,000 names": (
        "\n[" + " . ".join(["a", '"b"'] * 10_000) + "]",
        "keys of at most 32 names",
    ),
    "quoted names": (".".join(['"a b"'] * 20_000) + " = 1", "keys of at most 32 names"),
    "a number of 5,000 digits": ("x = " + "9" * 5000, "numbers of at most 4,300 digits"),
    "2 MiB of comments": ("#" * (2 << 20), "at most 1,048,576 bytes, found 2,097,152 bytes"),
}


@pytest.mark.parametrize("kind", LARGE)
def test_a_file_beyond_the_limits_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    text, message = LARGE[kind]
    (tmp_path / "e.toml").write_text(text)
    start = time.perf_counter()
    with pytest.raises(ConfigError) as caught:
        load_experiment(tmp_path / "e.toml")
    assert message in str(caught.value)
    assert time.perf_counter() - start < 2


def test_counts_that_no_store_holds_are_refused(tmp_path: Path) -> None:
    """They are refused by their number, before a name is made for each."""
    base = '[transfer_set]\nfactory = "a:b"\n[[teacher]]\nname = "wide"\nfactory = "a:b"\nweights = "w"\n'
    start = time.perf_counter()
    for line, key in (
        ("members = 100000000", "teacher[0].members: expected 4096 at most, found 100000000"),
        ("[cache]\nviews = 100000000", "cache.views: expected 65536 at most"),
        (
            '[cluster]\nteacher = "wide"\nclusters = 100000000\nclasses_per_cluster = 2',
            "cluster.clusters: expected 1048576 at most",
        ),
    ):
        (tmp_path / "e.toml").write_text(base + line)
        with pytest.raises(ConfigError) as caught:
            load_experiment(tmp_path / "e.toml")
        assert key in str(caught.value)
    assert time.perf_counter() - start < 2
