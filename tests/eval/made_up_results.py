"""A results.json with known answers: KL falls as a power of the rows read."""

import json

SHARES = (0.4, 0.1, 0.025)
SEED_FACTORS = (1.0, 2.0, 3.0)
TASKS = ("text", "mqar")
# Family: file, source, whether it is an oracle, KL with all rows read, key rows read for v.
FAMILIES = {
    "exact": ("exact", "2017", False, 0.0, lambda v: 1.0),
    "fitted": ("prompt_fitted", "this project: fitted", False, 2e-5, lambda v: 1.0),
    "sift": ("sift", "this project", False, 1e-5, lambda v: 1.0),
    "level": ("level", "Even, 2020", False, 1e-5, lambda v: 1.0),
    "paper": ("paper", "Koley et al., 2025", False, 5e-5, lambda v: 1.0),
    "sketch": ("sketch", "Some, 2021", False, 3e-5, lambda v: v + 0.125),
    "window": ("window", "Few, 2022", False, 4e-5, lambda v: v),
    "oracle": ("oracles", "nobody", True, 1e-6, lambda v: 1.0),
}


def cell(task, family, share, seed, **changes):
    """KL 1e-5 / share for the default, times 1, 2, 3 for the seeds; 'level' trades places."""
    _, _, _, scale, keys = FAMILIES[family]
    factor = SEED_FACTORS[seed]
    if family == "level":  # as good as the default: better on one seed, worse on another
        factor *= (1.2, 0.8, 1.0)[seed]
    kl = scale * factor / share
    has_answers = task == "mqar"
    accuracy = 0.98 - 10 * kl if has_answers else None
    exact = {"accuracy": 0.98 if has_answers else None, "bits_per_token": 2.0}
    return {
        "task": task,
        "length": 1024,
        "seed": seed,
        "family": family,
        "policy": f"{family.title()}(share={share}, rank=4)",
        "protocol": "simulated",
        "num_tokens": 100,
        "num_answers": 50 if has_answers else 0,
        "exact": exact,
        "accuracy": accuracy,
        "kl": kl,
        "agreement": 0.99,
        "v_fraction": share,
        "kv_fraction": (share + keys(share)) / 2,
        "dropped_mass": 1 - share,
        "sifted_share": 1.0,
        "layers": [
            {"layer": 1, "v_fraction": share, "dropped_mass": 0.2},
            {"layer": 3, "v_fraction": share / 2, "dropped_mass": 0.4},
        ],
        "by_step": [{"step": 0, "kl": kl, "v_fraction": share}],
        "by_depth": [
            {"depth": 0.1, "accuracy": accuracy, "exact_accuracy": 0.98, "num_answers": 50},
            {"depth": 0.9, "accuracy": None, "exact_accuracy": None, "num_answers": 0},
        ]
        if has_answers
        else [],
    } | changes


def made_up_results():
    """Two tasks, three seeds, eight families with three settings each; every protocol."""
    cells = [
        cell(task, family, share, seed)
        for task in TASKS
        for family in FAMILIES
        for share in (SHARES if family != "exact" else (1.0,))
        for seed in range(3)
    ]
    default = {"task": "text", "family": "sift", "share": 0.1, "seed": 0}
    cells.append(cell(**default, protocol="stepwise", v_fraction=0.1001, kl=1.1e-4))
    stretches = [{"step": 0, "kl": 1e-4, "v_fraction": 0.1}]
    stretches.append({"step": 5000, "kl": 3e-4, "v_fraction": 0.08})
    cells.append(cell(**default, protocol="drift", length=10512, by_step=stretches))
    cells.append(cell(**default, protocol="free-running", first_divergence=321.0))
    rows = [
        {"layer": 0, "head": h, "length": 600, "predicted": 0.01 * 2**h, "true": 0.01 * 4**h}
        for h in (-1, 0, 1)
    ]
    quantiles = {"task": "text", "length": 1024, "seed": 0, "family": "exact", "policy": "Exact()"}
    cells.append({**quantiles, "protocol": "quantiles", "rows": rows})
    return {
        "environment": {
            "model": "a <made up> model",
            "parameters": 840000,
            "layers": 4,
            "query_heads": 8,
            "kv_heads": 2,
            "head_dim": 32,
            "cpu": "made up",
            "cores": 2,
            "torch": "2.11",
            "transformers": "5.13",
            "commit": "0123456789ab",
            "date": "2000-01-01",
            "wall_s": 840.0,
            "options": {
                "lengths": [1024],
                "seeds": 3,
                "sequences": 2,
                "budget": [0.05, 0.1],
                "min_accuracy": 0.9,
            },
        },
        "families": {
            name: {"module": module, "source": source, "is_oracle": is_oracle}
            for name, (module, source, is_oracle, _, _) in FAMILIES.items()
        },
        "refused": [{"task": "tracking", "length": 1024, "reason": "exact accuracy 71.0 %"}],
        "missing": 2,
        "cells": cells,
    }


def write(folder, results=None):
    """Put results.json into a folder; returns the folder."""
    (folder / "results.json").write_text(json.dumps(results or made_up_results()))
    return folder
