"""A run directory holds no links: an erasure would leave what they lead to."""

import pytest
from tiny_runs import configuration

from streamcl.errors import ConfigError
from streamcl.runs.open import open_run


@pytest.mark.parametrize("name", ["predictions.jsonl", "lineage.sqlite", "samples"])
def test_a_linked_part_is_refused_and_what_it_leads_to_is_untouched(tmp_path, name):
    outside = tmp_path / "outside"
    outside.write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(outside)
    with pytest.raises(ConfigError, match="is a link"):
        open_run(configuration(tmp_path, max_samples=16))
    assert outside.read_text() == "precious"


def test_the_run_directory_itself_may_be_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    with open_run(configuration(tmp_path, max_samples=16)) as run:
        list(run)
    assert (tmp_path / "elsewhere" / "predictions.jsonl").exists()
