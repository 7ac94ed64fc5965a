"""A plan or a fit as JSON, with stable keys, which docs/plan.md lists."""

from __future__ import annotations

import dataclasses
from typing import Any

from qwonnx.export.planning.deployment import Deployment
from qwonnx.export.planning.fit import Candidate, Fit
from qwonnx.export.planning.memory import Use
from qwonnx.export.planning.plan import EXPORT_MEMORY_BYTES, Assumptions, ModelSummary, Plan, RecipePlan
from qwonnx.export.planning.resident_memory import MemoryUse
from qwonnx.export.planning.stored_model import StoredModel
from qwonnx.export.planning.traffic import DecodeTraffic

SCHEMA_VERSION = 2

Json = dict[str, Any]


def plan_report(name: str, plan: Plan) -> Json:
    """The whole plan; `name` is the source's."""
    return {
        "schema_version": SCHEMA_VERSION,
        "source": name,
        "model": _model(plan.model, plan.assumptions),
        "assumptions": _assumptions(plan.assumptions),
        "export_memory": EXPORT_MEMORY_BYTES,
        "recipes": [_recipe(recipe, plan.assumptions) for recipe in plan.recipes],
        "notes": list(plan.notes),
    }


def fit_report(name: str, fit: Fit, assumptions: Assumptions) -> Json:
    """Limits, and every candidate by rounding error."""
    chosen = fit.chosen
    return {
        "schema_version": SCHEMA_VERSION,
        "source": name,
        "assumptions": _assumptions(assumptions),
        "limits": {key: getattr(fit.limits, key) for key in ("memory", "disk", "context", "sequences")},
        "fits": chosen is not None,
        "chosen": None if chosen is None else _candidate(chosen),
        "nearest": None if chosen is not None else _candidate(fit.nearest),
        "candidates": [_candidate(candidate) for candidate in fit.candidates],
    }


def _model(model: ModelSummary, assumptions: Assumptions) -> Json:
    facts = dataclasses.asdict(model)
    states = facts.pop("states")
    return {
        **facts,
        "kv_bytes_per_token": model.states.kv_bytes_per_token(assumptions.serving.kv),
        "recurrent_state_bytes": states["recurrent_bytes"],
        "conv_state_bytes": states["conv_bytes"],
    }


def _assumptions(assumptions: Assumptions) -> Json:
    return {
        "target": assumptions.choice.target.name,
        "activations": assumptions.choice.activations.value,
        "kernels": assumptions.serving.kernels.value,
        **dataclasses.asdict(assumptions.serving),
        "bandwidth": assumptions.bandwidth,
    }


def _recipe(recipe: RecipePlan, assumptions: Assumptions) -> Json:
    traffic = recipe.traffic
    rate = None if assumptions.bandwidth is None else traffic.tokens_per_second(assumptions.bandwidth)
    return {
        **_stored(recipe.model),
        "groups": [dataclasses.asdict(group) for group in recipe.model.groups],
        "memory": [_memory(use) for use in recipe.memory],
        "decode": {
            "weights": traffic.weights,
            "kv": traffic.kv,
            "states": traffic.states,
            "bytes_per_step": traffic.bytes_per_step,
            "bytes_per_token": traffic.bytes_per_token,
            "tokens_per_second": rate,
        },
        "deployments": [_deployment(deployment, traffic) for deployment in recipe.deployments],
    }


def _stored(model: StoredModel) -> Json:
    artifact = model.artifact
    return {
        "name": model.named.name,
        "weights": model.named.recipe.weights,
        "weight_block_size": model.named.recipe.weight_block_size,
        "bits_per_weight": 8 * model.num_bytes / model.num_parameters,
        "artifact": {
            "total": artifact.num_bytes,
            "weights": artifact.weight_bytes,
            "is_exact": artifact.is_exact,
            "files": {file.path: file.num_bytes for file in artifact.files},
        },
    }


def _memory(use: Use) -> Json:
    further = {"resident": use.resident} if isinstance(use, MemoryUse) else {"unused": use.unused}
    return {**dataclasses.asdict(use), **further, "required": use.required}


def _deployment(deployment: Deployment, traffic: DecodeTraffic) -> Json:
    bandwidth = deployment.target.bandwidth
    return {
        "name": deployment.target.name,
        "memory": deployment.target.memory,
        "disk": deployment.target.disk,
        "bandwidth": bandwidth,
        "tokens_per_second": None if bandwidth is None else traffic.tokens_per_second(bandwidth),
        "fits": deployment.fits,
        "missing_memory": deployment.missing_memory,
        "missing_disk": deployment.missing_disk,
        "largest_context": deployment.largest_context,
    }


def _candidate(candidate: Candidate) -> Json:
    return {
        **_stored(candidate.model),
        "kv": candidate.kv,
        "rounding_error": candidate.rounding_error,
        "fits": candidate.fits,
        "memory": candidate.memory,
        "disk": candidate.disk,
        "missing_memory": candidate.missing_memory,
        "missing_disk": candidate.missing_disk,
        "largest_context": candidate.largest_context,
        "largest_sequences": candidate.largest_sequences,
    }
