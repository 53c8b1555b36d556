"""The loss head for two models: divergences of whole distributions, never a full table of logits of either.

Logits of student and teacher stand side by side for a chunk of positions at a time, and the derivative is formed in the
chunk. So a frozen head costs three matrix products, one of them the teacher's, and a trained one four.

Axes: S scored positions, V vocabulary, X hidden width of the student, Y of the teacher.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from crucible_train.adapters.torch_local.loss_head import MAX_CHUNK_BYTES, Chunk, Head, bytes_of_row, chunks, formed
from crucible_train.losses import DistributionLoss
from crucible_train.types import Divergence

# Float32 tables that a loss and a softmax make besides the logits of both.
_NUM_TABLES = 3


@dataclass(frozen=True, slots=True)
class Rows:
    """Hidden states (S, Y) of scored positions, and the head that makes logits of them."""

    hidden: Tensor
    head: Head


@dataclass(slots=True)
class DivergenceHead:
    """One pass of a divergence. ``divergence`` gathers the sum without what is added to it."""

    loss: Divergence
    function: DistributionLoss
    targets_S: Tensor
    weights_S: Tensor
    divergence: float = 0.0

    def value(self, student: Rows, teacher: Rows) -> tuple[Tensor, Tensor]:
        """The loss, and the student's log-probabilities of the targets (no gradient), both float32.

        With gradients on, the gradient is formed here, for a backward pass that starts from this very loss.
        """
        bytes_a_row = bytes_of_row(student.head) + bytes_of_row(teacher.head)
        bytes_a_row += _NUM_TABLES * 4 * int(student.head.compute.shape[0])
        num_rows = max(1, MAX_CHUNK_BYTES // bytes_a_row)
        teachers = chunks(teacher.hidden, teacher.head, num_rows)

        def form(chunk: Chunk) -> tuple[Tensor, Tensor]:
            return self._form(chunk, next(teachers).logits)

        if torch.is_grad_enabled():
            return formed(student.hidden, student.head, self.targets_S.shape, form, num_rows)
        parts = [form(chunk) for chunk in chunks(student.hidden, student.head, num_rows)]
        total = torch.stack([loss for loss, _ in parts]).sum() if parts else torch.zeros(())
        return total, torch.cat([told for _, told in parts]) if parts else torch.zeros(0)

    def _form(self, chunk: Chunk, teachers_SV: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of a chunk and its targets' log-probabilities; the chunk takes dloss/dlogits."""
        size = min(chunk.logits.shape[1], teachers_SV.shape[1])  # ids beyond are no token's
        whole_SV, student_SV, teacher_SV = chunk.logits, chunk.logits[:, :size], teachers_SV[:, :size]
        targets, weights = self.targets_S[chunk.rows, None], self.weights_S[chunk.rows]
        temperature, coef = self.loss.temperature, self.loss.cross_entropy_coef
        logprobs = (student_SV.gather(1, targets) - student_SV.logsumexp(1, keepdim=True)).squeeze(1)
        for table in (student_SV, teacher_SV):
            table.div_(temperature)
            table.sub_(table.logsumexp(1, keepdim=True))
        divergences, slope = self.function.per_row(self.loss, student_SV, teacher_SV)
        slope.mul_((weights / temperature)[:, None])
        if coef:
            probabilities = _at_temperature_one(student_SV, temperature)
            slope.addcmul_(probabilities, (coef * weights)[:, None])
            slope.scatter_add_(1, targets, (-coef * weights)[:, None])
        student_SV.copy_(slope)
        whole_SV[:, size:] = 0
        divergence = (divergences * weights).sum()
        self.divergence += float(divergence)
        return divergence - coef * (logprobs * weights).sum(), logprobs


def _at_temperature_one(tempered_SV: Tensor, temperature: float) -> Tensor:
    """``softmax(z)`` from ``softmax(z / temperature)``, in place: powers of it, normalised."""
    if temperature == 1.0:
        return tempered_SV
    tempered_SV.pow_(temperature)
    return tempered_SV.div_(tempered_SV.sum(1, keepdim=True))
