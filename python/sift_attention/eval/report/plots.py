"""The plots of a report; matplotlib is imported when they are drawn."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from .detail_plots import LOWEST_QUANTILE, plot_depths, plot_layers, plot_quantiles, plot_steps
from .page import Image
from .quality_plots import plot_condition, plot_overview, plot_recall
from .results import Axis, Condition, Results
from .tables import RECALL_V_SHARE, WHAT, asked
from .texts import limit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 110
NO_PLOTS = (
    "The plots are missing: matplotlib must be installed to draw them "
    "(`pip install 'sift-attention[eval]'`), got none."
)


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


class Plots:
    """Draws into a folder `plots` and answers with the block that shows the picture.

    Args:
        results: the evaluation.
        folder: of the report.
    """

    def __init__(self, results: Results, folder: Path) -> None:
        self._results = results
        self._folder = folder

    def overview(self, axis: Axis) -> list[Image]:
        """All tasks, KL against bytes."""
        figure = plot_overview(self._results, axis)
        caption = (
            "A line for each policy through its settings, coloured by kind; means over seeds. "
            f"Lower left is better. {limit(self._results)}"
        )
        return self._save(figure, f"overview_{_suffix(axis)}", caption)

    def condition(self, condition: Condition, axis: Axis) -> list[Image]:
        """One task, KL against bytes."""
        figure = plot_condition(self._results, condition, axis)
        caption = (
            f"{condition}: KL to exact attention against {WHAT[axis]} rows read over those of "
            "exact attention. Points: settings, means over seeds; bands: from the lowest to the "
            f"highest seed. {limit(self._results)}"
        )
        return self._save(figure, f"{condition.file_name}_{_suffix(axis)}", caption)

    def recall(self) -> list[Image]:
        """All tasks with answers, accuracy against V rows."""
        if not asked(self._results):
            return []
        caption = f"Means over seeds; the scale is linear within a point. {limit(self._results)}"
        return self._save(plot_recall(self._results), "recall", caption)

    def layers(self, family: str, v_share: float) -> list[Image]:
        """Kept rows and dropped mass by layer."""
        caption = f"What the layers read and drop. Means over seeds. {limit(self._results)}"
        return self._save(plot_layers(self._results, family, v_share), "layers", caption)

    def steps(self, family: str) -> list[Image]:
        """Drift."""
        caption = f"Along the decode steps, in stretches; means over seeds. {limit(self._results)}"
        return self._save(plot_steps(self._results, family, RECALL_V_SHARE), "steps", caption)

    def depths(self) -> list[Image]:
        """Accuracy by depth."""
        caption = (
            "Right answers minus those of exact attention by where in the context the answer "
            f"stands, at most {RECALL_V_SHARE:.0%} of the V rows read; grey: the policy needs "
            f"more, or nothing was asked. {limit(self._results)}"
        )
        return self._save(plot_depths(self._results, RECALL_V_SHARE), "depths", caption)

    def quantiles(self) -> list[Image]:
        """Predicted against true quantiles."""
        caption = (
            "Quantiles of the exact probabilities at decode steps, predicted by the power law that "
            "was fitted to the prompt. Dotted: a factor of 2; what is below "
            f"{LOWEST_QUANTILE:g} lies on the edge. {limit(self._results)}"
        )
        return self._save(plot_quantiles(self._results), "quantiles", caption)

    def _save(self, figure: Figure | None, name: str, caption: str) -> list[Image]:
        if figure is None:
            return []
        path = self._folder / "plots" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, dpi=_DPI)
        return [Image(f"plots/{name}.png", caption)]


def _suffix(axis: Axis) -> str:
    return {"v_fraction": "v", "kv_fraction": "kv"}[axis]
