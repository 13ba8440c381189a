"""Quality against steps: of `ddim evaluate`, of a calibration, or a little of it measured now."""

from __future__ import annotations

import re
import shlex
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddim.base.errors import InputError, quoted
from ddim.base.records import JSON_BYTES, checked, in_file, parse_json, read_text
from ddim.web.asked import TradeoffAsked, check_pixels, sampler_of
from ddim.web.channel import Channel
from ddim.web.jobs import Job

if TYPE_CHECKING:
    from ddim.model.model import Model
    from ddim.samplers.sampler import Sampler
    from ddim.samplers.tableau import Tableau
    from ddim.web.ways import Origin

__all__ = ["prepare_tradeoff", "read_evaluation", "tradeoff"]

Json = dict[str, Any]
RMS = "RMS to the network's own solution"
STEPS = (5, 10, 20, 50)
SIGMA_HAT = "sigma-hat"


def read_evaluation(folder: str) -> Json:
    """What ``ddim evaluate`` has written into a folder.

    Raises:
        InputError: nothing, or something else.
    """
    path = Path(folder) / "results.json"
    if not path.is_file():
        raise InputError(f"{folder} has no results.json, which `ddim evaluate` writes")
    found = parse_json(read_text(path, "JSON", JSON_BYTES), path)
    with in_file(f"{path} is not of `ddim evaluate`"):
        checked("facts", found.get("facts"), Mapping[str, Any])
        rows = checked("rows", found.get("rows"), list[Mapping[str, Any]])
        for row in rows:
            _figure(row, "calls")
            _figure(row, str(found.get("distance")))
    return found


def _figure(row: Mapping[str, Any], name: str) -> float:
    return float(checked(name, row.get(name), float))


def tradeoff(model: Model, origin: Origin, evaluation: Json | None) -> Json:
    """The figures that there are of a model: of the evaluation, else of its calibration.

    Args:
        model: the model.
        origin: where it has come from.
        evaluation: as :func:`read_evaluation` returns it.
    """
    of = "" if evaluation is None else str(evaluation["facts"].get("model"))
    found = re.search(r"\(([0-9a-f]{12})\)$", of)
    if evaluation is not None and found and model.identity.startswith(found[1]):
        return _evaluated(evaluation)
    try:
        known = model.calibrated()
    except InputError:
        command = ["ddim", "evaluate", *origin.options(), "--data", "FOLDER", "--output", "sweep"]
        return {"points": None, "source": None, "command": shlex.join(command)}
    return _calibrated(model, origin, known.entries)


def _evaluated(evaluation: Json) -> Json:
    """The rows of an evaluation as points."""
    distance, floor = str(evaluation["distance"]), evaluation.get("floor")
    points = []
    for row in evaluation["rows"]:
        sampler = _spelled(row)
        eta = f", η = {row['eta']}" if row.get("eta") not in (None, "") else ""
        milliseconds, sd = row.get("ms an image"), row.get(f"{distance} sd")
        points.append(
            {
                "sampler": None if sampler is None else str(sampler),
                "label": f"{row.get('method')}, {row.get('nodes')} nodes{eta}",
                "calls": int(_figure(row, "calls")),
                "seconds": milliseconds / 1000 if isinstance(milliseconds, float) else None,
                "value": _figure(row, distance),
                "sd": sd if isinstance(sd, float) else None,
                "unit": distance,
            }
        )
    return {
        "points": points,
        "metric": distance,
        "source": "evaluation",
        "baseline": floor.get("fd") if isinstance(floor, dict) else None,
        "note": f"{evaluation['facts'].get('images a sampler and seed')} images of each seed",
        "command": str(evaluation["facts"].get("command")),
    }


def _spelled(row: Mapping[str, Any]) -> Sampler | None:
    """The sampler of a row; None where it is not one that the page can draw by."""
    from ddim.samplers.sampler import Sampler

    method, nodes, eta, steps = (row.get(key) for key in ("method", "nodes", "eta", "steps"))
    if ".py" in str(method):
        return None
    family = None if nodes in ("calibrated", "uniform") else nodes
    try:
        if eta == SIGMA_HAT:
            return Sampler("ddpm", steps, family, variance="large")
        options = {} if eta in (None, "") else {"eta": eta}
        return Sampler.parse(str(method), None if _listed(family) else steps, family, **options)
    except InputError:  # of a package that is gone
        return None


def _listed(nodes: object) -> bool:
    """Whether nodes are a list, which has its own number of steps."""
    return isinstance(nodes, str) and nodes[:1].isdigit()


def _calibrated(model: Model, origin: Origin, entries: Mapping[str, Mapping[str, Any]]) -> Json:
    """What a calibration has measured of the samplers that it compared."""
    points, latents = [], None
    for calls, facts in entries.items():
        rms, latents = facts.get("rms", {}), facts.get("latents")
        for family in ("uniform", "quadratic", "log-snr", "calibrated"):
            if family not in rms:
                continue
            own = family == "calibrated"
            text = f"calibrated:steps={calls}" if own else f"ddim:nodes={family}:steps={calls}"
            points.append(
                {
                    "sampler": text.replace("nodes=uniform:", ""),
                    "label": family if own else f"ddim, {family} nodes",
                    "calls": int(calls),
                    "seconds": None,
                    "value": float(rms[family][0]),
                    "sd": None,
                    "unit": RMS,
                }
            )
    count = latents[-1] if isinstance(latents, list) and latents else None
    words = ["ddim", "calibrate", origin.source, "--calls", *entries]
    return {
        "points": points,
        "metric": RMS,
        "source": "calibration",
        "baseline": None,
        "note": f"median over {count} latents, on [-1, 1], as the calibration has measured it",
        "command": shlex.join(words),
    }


def prepare_tradeoff(model: Model, asked: TradeoffAsked) -> Job:
    """Solver error, measured now: how far samplers end from a finer one, from the same latents.

    Raises:
        InputError: beyond the limits, or samplers that draw noise, which lead to no one image.
    """
    from ddim.evaluate.deviation.teacher import finer_sampler
    from ddim.model.condition import Condition

    asked.check()
    check_pixels(model, asked.images)
    texts = asked.samplers or _usual(model)
    lanes = [sampler_of(model, text) for text in texts]
    for sampler, tableau in lanes:
        if tableau.stochastic:
            raise InputError(
                f"{quoted(str(sampler))} draws noise, so that no one image belongs to its latents"
            )
    fine = finer_sampler(model.schedule, [tableau for _, tableau in lanes])
    condition = Condition().check(model, asked.images, every_class=True)
    return lambda out: _measure(model, asked, lanes, fine, condition, out)


def _usual(model: Model) -> list[str]:
    """DDIM in some numbers of steps, and what calibration has found."""
    counts = dict.fromkeys(min(steps, model.schedule.T) for steps in STEPS)
    texts = [f"ddim:steps={steps}" for steps in counts]
    try:
        return texts + [f"calibrated:steps={s}" for s in sorted(model.calibrated().samplers)]
    except InputError:
        return texts


def _measure(
    model: Model,
    asked: TradeoffAsked,
    lanes: Sequence[tuple[Sampler, Tableau]],
    fine: Sampler,
    condition: Any,
    out: Channel,
) -> None:
    from ddim.evaluate.deviation.teacher import image_errors
    from ddim.model.drawing import pick_batch_size
    from ddim.web.coding import run

    size, indices = pick_batch_size(model, None), range(asked.images)
    note = f"median over {asked.images} latents of seed {asked.seed}, on [-1, 1], to {fine}"
    out.send("start", {"samplers": [str(s) for s, _ in lanes], "teacher": str(fine)})
    exact = run(model, model.tableau(fine), out, condition, indices, asked.seed, batch_size=size)[0]
    points = []
    for sampler, tableau in lanes:
        begun = time.perf_counter()
        ends = run(model, tableau, out, condition, indices, asked.seed, batch_size=size)[0]
        seconds = (time.perf_counter() - begun) / asked.images
        points.append(
            {
                "sampler": str(sampler),
                "label": sampler.method,
                "calls": tableau.calls,
                "seconds": round(seconds, 5),
                "value": statistics.median(image_errors(ends, exact).tolist()),
                "sd": None,
                "unit": RMS,
            }
        )
        out.send("point", points[-1])
    words = {"metric": RMS, "source": "measured", "baseline": None, "note": note, "command": None}
    out.send("done", {"points": points, **words})
