"""Learn the whole stream of a config, task after task, each a Ray Train run, each publishing a release.

    python jobs/train.py jobs/configs/scenes.yaml [key.sub=value ...]
    ray job submit --address http://127.0.0.1:8265 --working-dir . -- python jobs/train.py jobs/configs/scenes.yaml

`workers=0` learns in this process, without Ray. A re-run with the same name continues where it stopped.
"""

import argparse
import sys

from perdure import pipeline, report
from perdure.config import RunConfig, load
from perdure.console import ConsoleProgress, guarded
from perdure.run import learn_stream
from perdure.settings import settings


def train(config: RunConfig, progress: ConsoleProgress) -> dict[str, object]:
    """Learn a stream where the config says, and write its report."""
    if config.workers.num == 0:
        result = learn_stream(config, learner=pipeline.learn_here, progress=progress)
    else:
        from perdure.cluster.train import learn_with_ray, ray_cluster  # Ray is not needed, nor started, for workers=0

        with ray_cluster(config):
            result = learn_stream(config, learner=learn_with_ray, progress=progress)
    progress.close()
    report.write_run_html(settings().runs / config.name)
    return result


def main(arguments: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="jobs/train.py", description="Learn the whole stream of a config.")
    parser.add_argument("config", help="YAML of a run; ready-made ones are in jobs/configs/")
    parser.add_argument("overrides", nargs="*", help="key.sub=value")
    given = parser.parse_args(arguments)
    config = load(given.config, given.overrides)
    result = train(config, ConsoleProgress())
    print(report.summary_table(result))
    print(f"report: {settings().runs / config.name / 'report.html'}")


if __name__ == "__main__":
    sys.exit(guarded(main))
