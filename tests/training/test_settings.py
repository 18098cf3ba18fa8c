"""Settings: flags, fields and train.toml say the same, and refuse the same."""

import dataclasses

import click
import pytest
from stqp_cli.main import cli

from stqp.errors import InputError, UsageError
from stqp.patches.options import CutOptions
from stqp.training.config import anchored, load_settings, read_config, write_config
from stqp.training.settings import OPTIONS, Settings
from stqp.training.state import Plan, State, phases

# flags of the command that are no setting, each with its reason
NO_SETTING = {
    "out": "where the run goes; a train.toml serves many runs",
    "config": "the file of the settings",
    "resume": "what to do, not how",
    "print_config": "what to do, not how",
    "as_json": "how to print",
    "with_report": "what is written about the run, not the run",
    "verbose": "how to print",
}


def fields_of(kind, section=""):
    """All fields of the tree, found without `OPTIONS`."""
    for one in dataclasses.fields(kind):
        default = one.default if one.default is not dataclasses.MISSING else one.default_factory()
        if dataclasses.is_dataclass(default):
            yield from fields_of(type(default), one.name)
        else:
            yield (section, one.name)


def test_every_field_has_a_flag_and_every_flag_a_field():
    command = cli.get_command(click.Context(cli), "train")
    flags = {p.name for p in command.params} - set(NO_SETTING)
    assert flags == {o.flag for o in OPTIONS} and len(flags) == len(OPTIONS)
    homes = {(("data" if o.section == "split" else o.section), o.name) for o in OPTIONS}
    assert homes == set(fields_of(Settings))
    for parameter in command.params:
        assert parameter.name in NO_SETTING or isinstance(parameter, click.Argument) or parameter.help


def test_print_config_reads_back_to_the_same(tmp_path):
    values = {
        "arch": "lite", "max_time": 12.5, "classes": ("a \"b\" \\ c", "é"), "freeze_norm": True, "gce_q": 0.123456789,
        "recipe": "official", "init": "pannuke", "lr": 3e-5, "where": ("organ=colon*",), "patience": 3,
    }  # fmt: skip
    settings = anchored(Settings.of([tmp_path / "p"], **values)).resolved()
    path = tmp_path / "train.toml"
    path.write_text(write_config(settings), encoding="utf-8")
    assert load_settings(path) == settings
    text = write_config(settings)
    assert all(f"{o.name} =" in text and o.text[:20] in text for o in OPTIONS)
    assert max(map(len, text.splitlines())) <= 120


def test_paths_of_a_file_are_relative_to_it(tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"")
    (tmp_path / "t.toml").write_text(
        'projects = ["a", "/b"]\n[network]\ninit = "weights.pth"\n[split]\nsplit = "file:old/split.json"\n'
    )
    values = read_config(tmp_path / "t.toml")
    assert values["projects"] == (str(tmp_path / "a"), "/b")
    assert values["init"] == str(tmp_path / "weights.pth")
    assert values["split"] == f"file:{tmp_path / 'old' / 'split.json'}"


BAD = [
    ("[schedule]\nlearning = 1", "schedule.learning"),
    ("[schedul]\nlr = 1", "schedul"),
    ("[schedule]\nlr = 'fast'", "a number above 0 for schedule.lr, found 'fast'"),
    ("[schedule]\nlr = 0.0", "a number above 0 for schedule.lr, found 0.0"),
    ("[schedule]\nepochs = 1.5", "a whole number of at least 1 for schedule.epochs, found 1.5"),
    ("[schedule]\nepochs = true", "found True"),
    ("[run]\nsync_norm = 1", "true or false for run.sync_norm, found 1"),
    ("[schedule]\nema = 1.5", "a number from 0 to 1 for schedule.ema, found 1.5"),
    ("[schedule]\nlr = nan", "found nan"),
    ("[network]\narch = 'huge'", "one of lite, fast, original for network.arch, found 'huge'"),
    ("[data]\nclasses = 'a'", "a list of texts for data.classes, found 'a'"),
    ("[data]\nclasses = [1]", "a list of texts"),
    ("network = 3", "expected a table"),
    ("lr = 1", "is schedule.lr meant"),
    ("[split]\nvalidation = 0.5\ntest = 0.6", "leave too little"),
    ("[split]\nsplit = 'nonsense'", "nonsense"),
    ("what", "no TOML"),
]


@pytest.mark.parametrize(("text", "message"), BAD)
def test_a_bad_file_is_said_in_a_sentence(tmp_path, text, message):
    path = tmp_path / "train.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"train\.toml") as error:
        load_settings(path)
    assert message in str(error.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="--print-config"):
        load_settings(tmp_path / "none.toml")


def test_bad_values_of_the_library():
    for values in ({"speed": 1}, {"lr": -1.0}, {"epochs": 0}, {"arch": "huge"}, {"validation": 0.95}):
        with pytest.raises(UsageError):
            Settings.of(["p"], **values)


def test_what_recipe_and_network_decide():
    lite = Settings.of(["p"], arch="lite").resolved().schedule
    assert (lite.epochs, lite.lr, lite.optimizer, lite.decay, lite.freeze_epochs) == (50, 2e-3, "adamw", "cosine", 0)
    assert Settings.of(["p"], max_steps=3).resolved().schedule.epochs is None
    official = Settings.of(["p"], recipe="official", init="pannuke").resolved().schedule
    assert (official.optimizer, official.lr, official.decay, official.ema) == ("adam", 1e-4, "step", 0.0)
    assert [(p.frozen, p.batch_size, p.epochs) for p in phases(official)] == [(True, 16, 50), (False, 8, 50)]
    assert len(phases(Settings.of(["p"], recipe="official").resolved().schedule)) == 1
    assert Settings.of(["p"], recipe="official", lr=3e-4).resolved().schedule.lr == 3e-4


def test_the_learning_rate_follows_limits_and_kind():
    def rates(steps, **values):
        settings = Settings.of(["p"], arch="lite", **values).resolved()
        plan = Plan(settings.schedule, phases(settings.schedule)[0], 10)
        return [plan.learning_rate(State(step=s, steps=s)) for s in range(steps)]

    cosine = rates(100, epochs=10)
    assert max(cosine) <= 2e-3 and cosine[0] == pytest.approx(1e-4) and cosine[-1] < 5e-5
    assert cosine[3:] == sorted(cosine[3:], reverse=True)
    steps = rates(60, epochs=6, decay="step", step_epochs=2, step_factor=0.5, warm_up=0.0)
    assert [steps[i] for i in (0, 19, 20, 40, 59)] == pytest.approx([2e-3, 2e-3, 1e-3, 5e-4, 5e-4])
    assert rates(5, max_steps=5, decay="constant", warm_up=0.0) == [2e-3] * 5


def test_phases_share_limits_of_the_whole():
    settings = Settings.of(["p"], freeze_epochs=2, max_steps=30).resolved()
    first, second = (Plan(settings.schedule, p, 10) for p in phases(settings.schedule))
    state = State(step=19, steps=19)
    assert not first.over(state)
    state.step = state.steps = 20
    assert first.over(state) and not first.spent(state)
    state.begin(1)
    assert second.progress(state) == 0
    state.step, state.steps = 5, 25
    assert second.progress(state) == 0.5 and not second.over(state)


def test_sections_of_the_cut_are_all_described():
    assert {o.name for o in OPTIONS if o.section in ("data", "split")} == {
        f.name for f in dataclasses.fields(CutOptions)
    }
