"""`train.profile` writes a trace of some steps, which the report shows, and changes nothing that is trained."""

import json

from fastft.report.run_report import render_run
from fastft.run.run_directory import load_run
from tests.train.runs import differing, end, losses, run


def test_a_profiled_run_has_a_trace_and_the_same_weights(tiny, tmp_path):
    """Two of six steps are profiled; a run that ends before keeps what it has."""
    short = {"schedule__stop_epoch": "1"}
    run(tiny, tmp_path / "plain", **short)
    assert "profiled steps" not in render_run(load_run(tmp_path / "plain"))
    for steps, found in (("2", 2), ("100", 3)):
        folder = tmp_path / steps
        run(tiny, folder, train__profile=steps, **short)
        assert differing(end(folder), end(tmp_path / "plain")) == []
        assert losses(folder) == losses(tmp_path / "plain")
        trace = json.loads((folder / "profile/trace.json").read_text())
        names = [event["name"] for event in trace["traceEvents"] if event.get("cat") == "user_annotation"]
        assert names.count("update") == names.count("forward and backward") == found
        operations = json.loads((folder / "profile/operations.json").read_text())
        assert operations["steps"] == found and {"aten::addmm", "aten::mm"} <= {
            row["name"] for row in operations["operations"]
        }
    page = render_run(load_run(tmp_path / "2"))
    assert "of 2 profiled steps" in page and 'href="profile/trace.json"' in page
    longest = sorted(operations["operations"], key=lambda row: -row["seconds"])
    assert operations["operations"] == longest and page.count('<td class="n" data-v="') >= 10
