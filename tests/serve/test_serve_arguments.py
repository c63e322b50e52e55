"""What `serve/run.py` makes of its command line, and says of a bad one before anything starts."""

import pytest

from perdure.errors import ConfigError
from serve.run import arguments_of, main


def test_any_argument_of_the_service_is_set_by_its_dotted_name() -> None:
    args = arguments_of(
        {"registry": "r", "topology": "sharded"}, ["gateway.num_replicas=2", "candidate=null", "rate_per_s=5", "runs=elsewhere"]
    )
    assert (args.gateway.num_replicas, args.candidate, args.rate_per_s, args.runs) == (2, None, 5.0, "elsewhere")
    assert (args.registry, args.topology) == ("r", "sharded")
    assert args.shard == arguments_of({}).shard


def test_everything_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as told:
        arguments_of({"registry": "r"}, ["rate_per_second=5", "shards=0", "gateway.num_replica=2", "nonsense"])
    said = str(told.value)
    assert "rate_per_second: no such option" in said and "rate_per_s" in said
    assert "shards" in said and "greater than or equal to 1" in said
    assert "gateway.num_replica: no such option" in said
    assert "override 'nonsense': expected key.sub=value" in said


def test_a_bad_command_line_starts_nothing_and_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--registry", "r", "poll_s=0"]) == 2
    assert "poll_s" in capsys.readouterr().err
