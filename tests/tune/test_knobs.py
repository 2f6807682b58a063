"""What can be turned, and what a config looks like once it is."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy.errors import UsageError
from deploy.repository.config import build_config
from deploy.repository.find import read_manifest
from deploy.repository.lint import lint
from deploy.repository.protobuf import parse_config
from deploy.slo.tune_records import Knob, Setting
from deploy.targets import find_target
from deploy.tune.knobs import all_settings, apply, difference, find_knobs, first_settings, own_setting
from tests.repository.samples import Sample
from tests.tune.beds import BATCHED, STATIC, put_version

OWN = Setting(batch_limit=8, delay_us=0, instances=1, threads=2)


def config_of(sample: Sample) -> Any:
    return parse_config(build_config(sample.plan()))


def names(knobs: tuple[Knob, ...]) -> set[str]:
    return {knob.name for knob in knobs}


def test_a_batching_version_has_all_knobs_with_its_own_values_among_them(tmp_path: Path) -> None:
    version = put_version(tmp_path / "models")
    config = parse_config(version.config.read_text())
    knobs = find_knobs(read_manifest(version), config, cores=2, bound_ms=16.0)
    found = {knob.name: knob.values for knob in knobs}
    assert found == {
        "instances": (1, 2, 4),
        "threads": (1, 2),
        "batch_limit": (1, 2, 4, 8),
        "delay_us": (0, 250, 500, 1000, 2000, 4000),
    }
    assert own_setting(config) == OWN


def test_no_more_instances_are_tried_than_there_is_memory_for() -> None:
    sample = Sample()
    knobs = find_knobs(sample.manifest(), config_of(sample), cores=64, bound_ms=16.0, most_instances=5)
    assert next(knob.values for knob in knobs if knob.name == "instances") == (1, 2, 4)


def test_a_static_version_has_no_batching_knobs(tmp_path: Path) -> None:
    version = put_version(tmp_path / "models", Sample(spec=STATIC))
    config = parse_config(version.config.read_text())
    assert own_setting(config) == Setting(instances=1, threads=2)
    assert names(find_knobs(read_manifest(version), config, cores=2, bound_ms=16.0)) == {"instances", "threads"}


def test_an_archive_on_a_real_release_has_no_instances_to_turn() -> None:
    sample = Sample(format="aoti")
    manifest, config = sample.manifest(), config_of(sample)
    here = find_knobs(manifest, config, cores=2, bound_ms=16.0)
    there = find_knobs(manifest.model_copy(update={"target": find_target("26.06-cpu")}), config, cores=2, bound_ms=16.0)
    assert names(here) - names(there) == {"instances"}


def test_on_a_gpu_the_processors_threads_are_no_knob() -> None:
    sample = Sample()
    target = find_target("26.06-cpu").model_copy(update={"device": "cuda"})
    manifest = sample.manifest().model_copy(update={"target": target})
    assert "threads" not in names(find_knobs(manifest, config_of(sample), cores=2, bound_ms=16.0))


def test_nothing_to_tune_is_wrong_use() -> None:
    sample = Sample(format="aoti", spec=STATIC)
    config = parse_config(build_config(replace(sample.plan(), threads=1)))
    manifest = sample.manifest().model_copy(update={"target": find_target("26.06-cpu")})
    with pytest.raises(UsageError, match="nothing to tune"):
        find_knobs(manifest, config, cores=1, bound_ms=16.0)


@pytest.mark.parametrize("setting", [
    OWN,
    Setting(batch_limit=1, instances=2, threads=1),
    Setting(batch_limit=4, delay_us=500, instances=4, threads=1),
    Setting(batch_limit=8, delay_us=2000, instances=1, threads=2),
], ids=str)  # fmt: skip
def test_a_turned_config_says_the_setting_and_is_clean(setting: Setting) -> None:
    config = config_of(Sample())
    turned = apply(config, setting)
    assert own_setting(turned) == setting
    assert turned.max_batch_size == config.max_batch_size, "requests that were taken before are taken now"
    assert lint(str(turned)) == ()
    assert own_setting(config) == OWN, "the config that was given is as it was"


def test_the_own_setting_is_no_difference_and_another_is_shown() -> None:
    config = config_of(Sample())
    assert difference(config, apply(config, OWN)) == ""
    shown = difference(config, apply(config, Setting(batch_limit=4, delay_us=500, instances=2, threads=1)))
    assert "+  preferred_batch_size: 4" in shown
    assert "+  count: 2" in shown
    assert "-  count: 1" in shown


def test_the_space_is_conditional_and_without_repeats() -> None:
    knobs = (
        Knob(name="batch_limit", values=(1, 4)),
        Knob(name="delay_us", values=(0, 100, 200)),
        Knob(name="instances", values=(1, 2)),
    )
    settings = list(all_settings(knobs))
    assert len(settings) == len(set(settings)) == 2 * (1 + 3)
    assert all((setting.delay_us is None) == (setting.batch_limit == 1) for setting in settings)


def test_the_first_settings_begin_with_the_own_and_lie_in_the_space(tmp_path: Path) -> None:
    version = put_version(tmp_path / "models")
    knobs = find_knobs(read_manifest(version), parse_config(version.config.read_text()), cores=2, bound_ms=16.0)
    first = first_settings(OWN, knobs, cores=2)
    assert first[0] == OWN
    assert len(first) == len(set(first)) == 4
    assert set(first) <= set(all_settings(knobs))
    assert BATCHED.max_batch == 8
