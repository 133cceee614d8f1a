"""What do generalist and specialists, combined, say of examples that are in no store?

Each specialist is run over the examples as it would be captured, its correction in, and put together with the generalist
as `combine` does it. Source: Hinton et al. 2015, section 5.4, eq. 5.
"""

import numpy as np
from jaxtyping import Float, Float32
from numpy.typing import NDArray

from ..storage.api import Store
from ..storage.progress import Progress, silent
from .combination import Experts, active_specialists, combine_rows
from .experiment import Experiment
from .inference import run_model
from .models import count_parameters
from .records import Models
from .specialist_agenda import columns_of, special_rows, specialist_runs
from .specialists import load_specialist
from .transfer import TransferRows


def combination_logits(
    experiment: Experiment,
    store: Store,
    models: Models,
    rows: TransferRows,
    inputs: NDArray[np.generic],
    generalist: Float[np.ndarray, "rows classes"],
    *,
    batch_size: int,
    device: str | None = None,
    progress: Progress = silent,
) -> tuple[Float32[np.ndarray, "rows classes"], int]:
    """ln q of each example, and the parameters of all specialists together.

    store: that of the experiment, which has the clustering and the labels that the specialists learnt from; they must be
    trained. inputs: (rows, …) as the transfer set gives them. generalist: its logits of them.
    """
    assert experiment.combine is not None  # whoever asks has looked
    combine = experiment.combine
    special = [(run, special_rows(experiment, run, store)) for run in specialist_runs(experiment, store)]
    columns = [columns_of(experiment, own.classes, store.num_classes) for _, own in special]
    experts = Experts.of(columns, store.num_classes)
    logits = generalist.astype(np.float32)
    active, said, parameters = active_specialists(logits, experts, combine.top), [], 0
    for number, (run, own) in enumerate(special):
        where = f"specialist {run.name!r}"
        network = load_specialist(experiment, run, own, store.num_classes, models, rows=rows, device=device)
        parameters += count_parameters(network)
        asked = np.flatnonzero(active[:, number])
        if len(asked):
            said.append(np.asarray(run_model(network, inputs[asked], batch_size, where=where), np.float32))
        else:
            said.append(np.zeros((0, len(columns[number])), np.float32))
        progress("evaluating", number + 1, len(special), "specialists", run.name)
    combined = combine_rows(logits, experts, active, said, direction=combine.direction, out=logits)
    return np.asarray(combined, np.float32), parameters
