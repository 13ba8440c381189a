"""A doctor for models: what they are, and whether they are what they are taken for."""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

from ddim.base.display import Listing, shown
from ddim.base.errors import InputError
from ddim.denoisers.target import Target
from ddim.model.model import Model
from ddim.model.predictions import BETTER_THAN_NOTHING, PredictionCheck

__all__ = ["Finding", "check_model"]

SIGNAL_LEFT = 0.02
SIGNAL_FAR_TOO_MUCH = 0.22
FIRST_NOISE = 0.05
LOST = 0.5
"""What of the noise a network may miss where there is more of it than of the image."""
EXPLODING = 0.3
"""What the first step may add to a state beside what belongs there."""
CODED = 200.0
"""σ/α from which an error of the noise is not yet multiplied beyond use."""


@shown
@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: ``ok``, ``note`` (good to know) or ``problem``.
        what: what was found.
        why: why it matters.
        do: what to do about it; empty where there is nothing.
    """

    level: Literal["ok", "note", "problem"]
    what: str
    why: str
    do: str = ""


def check_model(
    model: Model, *, steps: int = 50, predictions: Sequence[PredictionCheck] = ()
) -> list[Finding]:
    """Look at everything about a model that people trip over.

    Args:
        model: the model.
        steps: S, of the sampler that is meant.
        predictions: as :func:`~ddim.model.predictions.check_predictions` returns them; they are
            what tells broken conventions.

    Raises:
        InputError: steps outside 1..T.
    """
    schedule = model.schedule
    if not 1 <= steps <= schedule.T:
        raise InputError(f"the number of steps must be from 1 to T = {schedule.T}, not {steps}")
    findings = [*_weights(model), *_assumed(model), *_ends(model)]
    findings += [*_steps(model, steps), *_eta(model), *_clipping(model)]
    findings += _conditioning(model)
    findings += _predictions(model, predictions)
    findings += _first_step(model, steps, predictions)
    return Listing(findings)


def _weights(model: Model) -> list[Finding]:
    bad = [n for n, p in model.net.named_parameters() if not bool(p.isfinite().all())]
    dead = [n for n, p in model.net.named_parameters() if p.numel() > 1 and not bool(p.any())]
    why = "every image passes through every weight"
    found = []
    if bad:
        found.append(
            Finding("problem", f"{bad[0]} holds values that are not finite", why, "load it anew")
        )
    # Biases are zero in many a trained network, weights are not.
    dead = [name for name in dead if name.endswith("weight")]
    if dead:
        found.append(
            Finding(
                "note",
                f"{len(dead)} weights are all zero, such as {dead[0]}",
                "layers that start at zero are still so in a network that was never trained",
                "check that these are the trained weights",
            )
        )
    return found or [Finding("ok", "all weights are finite, none is all zero", why)]


def _assumed(model: Model) -> list[Finding]:
    assumed = model.facts.assumed
    return [
        Finding(
            "note",
            f"assumed, since the file does not say: {item}",
            "where the assumption is wrong the images are, too",
            "give it: ddim.load(…, schedule=…, hints=…) or a .json file beside the checkpoint",
        )
        for item in assumed
    ]


def _ends(model: Model) -> list[Finding]:
    schedule = model.schedule
    left, first = float(schedule.alpha[-1]), float(schedule.sigma[1])
    found = []
    if left == 0 and model.target is Target.EPS:
        found.append(
            Finding(
                "problem",
                f"at node T = {schedule.T} no signal is left (α = 0), and the target is ε",
                "x0 cannot be told from x and ε there: the first step divides by zero",
                "start at a node below T, or take a network that predicts v or x0",
            )
        )
    elif left == 0:
        found.append(
            Finding("ok", "zero terminal SNR, and a target that is finite there", "it starts right")
        )
    elif left > SIGNAL_FAR_TOO_MUCH:
        found.append(
            Finding(
                "note",
                f"at node T = {schedule.T} {left:.2%} of the signal is left (ᾱ_T = {left**2:.2g})",
                "a network trained with such a schedule has never seen noise alone, from which "
                "images are drawn; or it was trained with another one, such as β for 1000 steps "
                "scaled to fewer",
                "look at its predictions (--data); edit and encode images rather than draw them",
            )
        )
    elif left > SIGNAL_LEFT:
        found.append(
            Finding(
                "note",
                f"at node T = {schedule.T} {left:.2%} of the signal is left (ᾱ_T = {left**2:.2g})",
                "sampling starts from pure noise, which the network never saw there: very dark and "
                "very bright images come out greyer than the data's",
                "nothing in sampling mends it; train with --zero-snr and --target v",
            )
        )
    else:
        found.append(
            Finding(
                "ok",
                f"at node T = {schedule.T} {left:.2%} of the signal is left (ᾱ_T = {left**2:.2g})",
                "sampling starts from pure noise, as the network saw it",
            )
        )
    level = "note" if first > FIRST_NOISE else "ok"
    found.append(
        Finding(
            level,
            f"at node 1 the noise is σ = {first:.3g}, {127.5 * first:.1f} grey levels of 255",
            "finer detail than that was never shown to the network; samplers that stop there "
            "instead of at node 0 leave that much noise in every image",
            "" if level == "ok" else "nothing: the last step here leads to node 0",
        )
    )
    return found


def _steps(model: Model, steps: int) -> list[Finding]:
    T = model.schedule.T
    stride = T // steps
    start = (steps - 1) * stride + 1
    why = "with 'leading' spacing others start below T, on noise that the network saw less of"
    if T % steps == 0:
        return [
            Finding(
                "ok",
                f"{steps} steps divide T = {T}: here they start at node {T}, in 'leading' grids of "
                f"others at {start}",
                why,
            )
        ]
    return [
        Finding(
            "note",
            f"{steps} steps do not divide T = {T}: here it makes no difference, elsewhere "
            f"'leading' grids start at node {start} and others have {-(-T // stride)} steps",
            why,
            "to reproduce their images give their nodes as a list",
        )
    ]


def _eta(model: Model) -> list[Finding]:
    learned = model.facts.learned_variance
    what = "η multiplies the standard deviation of the injected noise: its variance goes with η²"
    why = (
        "0 is deterministic and 1 is DDPM with the posterior variance, here and in the paper; some "
        "libraries multiply the variance by η, which is the same at 0 and at 1 only"
    )
    if not learned:
        return [Finding("ok", what, why)]
    return [
        Finding(
            "note",
            f"{what}; this network has learned a variance of its own",
            f"{why}. DDIM does not use the learned one, --method ddpm does",
            "take --method ddpm for the sampler that it was trained for",
        )
    ]


def _clipping(model: Model) -> list[Finding]:
    clipping = model.clipping
    if clipping.kind == "none":
        return [Finding("ok", "the predicted x0 is not clipped", "latents can be inverted")]
    return [
        Finding(
            "note",
            f"the predicted x0 is changed by default ({clipping.kind}, limit {clipping.limit:g})",
            "here ε is recomputed from it; diffusers' DDIM keeps the old ε beside the clipped x0 "
            "unless use_clipped_model_output is set, and its images differ. It cannot be undone, "
            "so encoding is refused",
            "clip=False, or --clip False, leaves it out",
        )
    ]


def _conditioning(model: Model) -> list[Finding]:
    if model.classes is None:
        return []
    if model.null_label is None:
        return [
            Finding(
                "note",
                f"{model.classes} classes and no label for 'none'",
                "classifier-free guidance needs one, and is refused",
                "train with label dropout for it",
            )
        ]
    return [
        Finding(
            "ok",
            f"{model.classes} classes, and {model.null_label} for 'none'",
            "classifier-free guidance is possible",
        )
    ]


def _predictions(model: Model, predictions: Sequence[PredictionCheck]) -> list[Finding]:
    if not predictions:
        return [
            Finding(
                "note",
                "the network's predictions were not looked at",
                "a wrong target, time convention or schedule shows in nothing else",
                "give clean images of what it was trained on (--data)",
            )
        ]
    worst = max(predictions, key=lambda c: _distance(c.total))
    text = f"E‖ε_θ‖² + E‖ε - ε_θ‖² is {worst.total:.3f} at node {worst.k}, the farthest from 1"
    why = "for a perfect network on its own data they sum to 1 at every node"
    fit = "ddim.fit_conventions(net, images) tries them all"
    if all(check.sound for check in predictions):
        return [Finding("ok", text, why)]
    if worst.better:
        return [
            Finding(
                "problem",
                f"{text}; the network denoises far better under {worst.better}",
                "target, times, schedule or data range are not those that it was trained with",
                f"say so when the model is made; {fit}",
            )
        ]
    # With more noise than image anything that was trained at all finds most of it.
    rho = model.schedule.rho
    lost = [c for c in predictions if rho[c.k] > 1 and not c.missed < LOST]
    lost += [c for c in predictions if not math.isfinite(c.total)]
    if lost:
        return [
            Finding(
                "problem",
                f"at node {lost[0].k} the network misses {lost[0].missed:.2f} of the noise; one "
                "that knows nothing misses 1",
                "it was not trained, or not on such images, or with conventions beside those "
                "that were tried, one change at a time",
                f"check that these are the trained weights; {fit}",
            )
        ]
    weak = next((c for c in predictions if not c.missed < BETTER_THAN_NOTHING), worst)
    return [
        Finding(
            "note",
            f"{text}; the network is weak: at node {weak.k} it misses {weak.missed:.2f} of the "
            "noise",
            f"{why}; no other convention that was tried does better, so that it was trained too "
            "little, or on other images than these",
            "train longer, or give images of its own data",
        )
    ]


def _first_step(model: Model, steps: int, predictions: Sequence[PredictionCheck]) -> list[Finding]:
    """Whether the x0 of node T explodes: what the first step makes of it."""
    schedule = model.schedule
    top = next((check for check in predictions if check.k == schedule.T), None)
    if top is None:
        return []
    following = schedule.level(round(schedule.T - schedule.T / steps))
    added = following.alpha * top.overshoot / following.spread
    rho = float(schedule.rho[-1])
    what = (
        f"at node T = {schedule.T} the unclipped x0 is {top.overshoot:.3g} (RMS) beyond the images"
    )
    why = (
        f"an error of ε is multiplied by σ/α = {rho:.3g} there, and the first of {steps} steps "
        f"brings {added:.2g} of it into a state of about 1"
    )
    if added <= EXPLODING:
        return [Finding("ok", what, why)]
    if model.clipping.kind != "none":
        return [Finding("ok", f"{what}; clipping, the default here, holds it", why)]
    lower = bisect.bisect_right(schedule.rho.tolist(), CODED) - 1
    return [
        Finding(
            "problem",
            f"{what}: images explode",
            why,
            f"clip x0 (clip=True), or start lower, at node {lower} or below",
        )
    ]


def _distance(total: float) -> float:
    return abs(total - 1) if math.isfinite(total) else math.inf
