"""Means of loss terms: by epoch, over the steps that had the term, and the same after a stop."""

from perdure.training.meter import Meter


def test_a_term_that_comes_now_and_then_is_a_mean_over_the_steps_that_had_it() -> None:
    meter = Meter(steps_per_epoch=4)
    for step in range(8):
        meter.add(step, 10, 0.5, {"each": float(step), **({"rare": 6.0 + step} if step % 4 == 3 else {})})
    summary = meter.summary()
    assert summary.curves == {"each": [1.5, 5.5], "rare": [9.0, 13.0]}
    assert summary.terms == {"each": 5.5, "rare": 13.0}
    assert (summary.steps, summary.images, summary.images_per_s) == (8, 80, 20.0)


def test_a_meter_goes_on_from_its_state() -> None:
    whole, first, second = Meter(2), Meter(2), Meter(2)
    for step in range(5):
        whole.add(step, 1, 1.0, {"loss": step**2})
    for step in range(3):
        first.add(step, 1, 1.0, {"loss": step**2})
    second.restore(first.state())
    for step in (3, 4):
        second.add(step, 1, 1.0, {"loss": step**2})
    assert second.summary() == whole.summary()
