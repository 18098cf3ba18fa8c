"""What a model is, what it learnt from, and what it takes to run it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stqp.record import RunRecord
from stqp.training.checkpoints import load_network, read_checkpoint
from stqp.training.network import architecture, cost


def model_info(model: str | Path, classes: Sequence[str] | None = None) -> RunRecord:
    """Tell what is known of a model.

    Parameters
    ----------
    model, classes
        As `stqp.training.checkpoints.read_checkpoint`.

    Returns
    -------
    RunRecord
        ``results`` has ``name``, ``source``, ``path``, ``architecture``, ``classes``, ``num_types``, ``mpp``,
        ``parameters``, ``gflop`` (a window), ``input_size``, ``output_size``, ``tiatoolbox``; and of a run
        ``training``, ``validation``, ``labels``, ``data``, ``colors`` and ``versions`` of its manifest.

    Raises
    ------
    InputError, UsageError, EnvironmentProblem
        As `read_checkpoint`.
    """
    record = RunRecord("model info", {"model": model, "classes": classes})
    checkpoint = read_checkpoint(model, classes)
    geometry = architecture(checkpoint.architecture)
    parameters, gflop = cost(load_network(checkpoint), geometry.input_size)
    manifest: Mapping[str, Any] = checkpoint.manifest or {}
    lite = checkpoint.architecture == "lite"
    results = {
        "name": checkpoint.name,
        "source": checkpoint.source,
        "path": str(checkpoint.path),
        "architecture": checkpoint.architecture,
        "num_types": checkpoint.num_types,
        "classes": None if checkpoint.classes is None else [*checkpoint.classes],
        "mpp": checkpoint.mpp,
        "parameters": parameters,
        "gflop": round(gflop, 2),
        "input_size": geometry.input_size,
        "output_size": geometry.output_size,
        "fully_convolutional": geometry.fully_convolutional,
        "tiatoolbox": {
            "class": "HoVerNetLite" if lite else "tiatoolbox.models.architecture.hovernet.HoVerNet",
            "arguments": {"num_types": checkpoint.num_types} | ({} if lite else {"mode": checkpoint.architecture}),
            "export": f"stqp model export {model} --to tiatoolbox --out DIR",
        },
        **{key: manifest[key] for key in _OF_A_RUN if key in manifest},
    }
    record.results.update(results)
    _tell(record, results)
    return record


_OF_A_RUN = ("training", "validation", "labels", "data", "colors", "versions")


def _tell(record: RunRecord, results: Mapping[str, Any]) -> None:
    """Say the same to a person."""
    record.count("model", f"{results['name']}, {results['source']}")
    whole = ", larger windows work too" if results["fully_convolutional"] else ""
    record.count(
        "network",
        f"{results['architecture']}, {results['parameters'] / 1e6:.2f} million parameters, {results['gflop']:.1f} "
        f"GFLOP a window of {results['input_size']} px ({results['output_size']} px come out{whole})",
    )
    names = results["classes"]
    if results["num_types"] is None:
        told = "none, it does not type"
    elif names is None:
        told = f"{results['num_types'] - 1}, whose names it does not say"
    else:
        told = ", ".join(names)
    record.count("classes", told)
    record.count("resolution", f"{results['mpp']:g} µm per px")
    training = results.get("training", {})
    if training:
        parts = [
            f"{training[k]:,} {k}" for k in ("steps", "crops", "epochs") if isinstance(training.get(k), (int, float))
        ]
        parts += [f"{training['minutes']:g} minutes on {training.get('device')}"] if "minutes" in training else []
        record.count("training", ", ".join(parts))
        initial = training.get("initial") or {}
        if isinstance(initial, Mapping) and initial.get("summary"):
            record.count("began with", str(initial["summary"]))
    data = results.get("data", {})
    if data:
        sides = data.get("patches_by_side", {})
        told = ", ".join(f"{number:,} for {side}" for side, number in sides.items() if number)
        record.count("patches", f"{data['patches']:,}" + (f": {told}" if told else ""))
    for label in results.get("labels", []):
        record.count(f"labels of {label.get('entry') or 'its patches'}", label["summary"])
    scores = {k: v for k, v in results.get("validation", {}).items() if isinstance(v, (int, float))}
    if scores:
        record.count("held out", ", ".join(f"{name} {value:.3f}" for name, value in scores.items()))
    needs = results["tiatoolbox"]
    arguments = ", ".join(f"{k}={v!r}" for k, v in needs["arguments"].items())
    record.count(
        "for TIAToolbox", f"{needs['class'].rsplit('.', 1)[-1]}({arguments}), ioconfig.yaml: {needs['export']}"
    )
