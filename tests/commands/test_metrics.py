"""What a run prints at its end."""

from rsd.commands.metrics import finish_run


def test_values_of_stages_stand_below_the_stage(tmp_path, capsys):
    metrics = {"mse": [0.5, 0.25], "bits": 10, "perplexity": [3.0, 2.0]}
    assert finish_run(tmp_path, "a title", metrics, ["mse", "bits", "absent", "perplexity"]) == 0.25
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:-1]]
    shown = [["bits", "10"], ["absent"], ["stage", "1", "2"], ["mse", "0.5", "0.25"], ["perplexity", "3", "2"]]
    assert rows == shown
