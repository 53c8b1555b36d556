"""The loss head's peak memory beside the vocabulary: it must stay under 64 MiB whatever that is.

    python -m benchmarks.loss_head_memory [--vocabularies 32768 49152 151936 256000]

Each case runs in a fresh process: 1,024 scored positions of width 576, head frozen (LoRA) or trained, matrix products
in float32 or bfloat16, weights known beforehand or the two-pass path of any other loss. Counted is the highest resident
memory during forward and backward, less the resident memory before, less the gradient of the hidden states, which
belongs to the model. Weights and their gradients exist, and have been written to, before; a pass over 2,048 words has
loaded the code and the workspaces of the matrix products.
Recorded as ``results/loss_head_memory.json``.
"""

import argparse
import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks import record

LIMIT_MIB = 64.0
VOCABULARIES = (32768, 49152, 151936, 256000)
NUM_POSITIONS, WIDTH = 1024, 576
_WARM_UP_VOCABULARY = 2048
_RESET_PEAK = "5"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabularies", nargs="+", type=int, default=list(VOCABULARIES))
    parser.add_argument("--case", help="one case, as JSON, measured in this process")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(**json.loads(arguments.case))))
        return
    rounds = []
    for vocabulary, is_trained, precision, path in product(
        arguments.vocabularies, (False, True), ("float32", "bfloat16"), ("weighted", "any_loss")
    ):
        case = {"vocabulary": vocabulary, "is_trained": is_trained, "precision": precision, "path": path}
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.loss_head_memory", "--case", json.dumps(case)],
            capture_output=True,
            text=True,
            check=True,
            cwd=record.ROOT,
        )
        rounds.append(case | json.loads(done.stdout))
        one = rounds[-1]
        print(
            f"  V = {vocabulary:>7,}  {'trained' if is_trained else 'frozen ':<8}{precision:<9}{path:<9}"
            f"{one['extra_mib']:>7.1f} MiB   all logits would be {one['logits_mib']:>7.1f} MiB",
            flush=True,
        )
    highest = max(one["extra_mib"] for one in rounds)
    config = {"num_positions": NUM_POSITIONS, "width": WIDTH, "vocabularies": arguments.vocabularies}
    path = record.write(
        "loss_head_memory",
        config=config,
        rounds=rounds,
        summary={"highest_extra_mib": highest, "limit_mib": LIMIT_MIB},
        pythons={"ours": Path(sys.executable)},
    )
    print(f"written: {path.relative_to(record.ROOT)}; highest {highest:.1f} MiB of {LIMIT_MIB:.0f}")
    sys.exit(highest > LIMIT_MIB)


def measure(*, vocabulary: int, is_trained: bool, precision: str, path: str) -> dict[str, Any]:
    """One case in this process, which must have done nothing of the kind before."""
    import torch

    from crucible_train.adapters.torch_local.loss_head import Head, gradient_of, logprobs, weighted_logprobs

    torch.manual_seed(0)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    found = {}
    for size in (_WARM_UP_VOCABULARY, vocabulary):
        weight = torch.nn.Parameter(torch.randn(size, WIDTH), requires_grad=is_trained)
        if is_trained:
            gradient_of(weight).fill_(0.0)
        head = Head(weight=weight, compute=weight.detach().to(dtype))
        hidden = torch.randn(NUM_POSITIONS, WIDTH, requires_grad=True)
        targets = torch.randint(0, size, (NUM_POSITIONS,))
        weights = torch.full((NUM_POSITIONS,), 1.0 / NUM_POSITIONS)
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK, encoding="ascii")
        before = _status_mib("VmRSS")
        if path == "weighted":
            loss, _ = weighted_logprobs(hidden, head, targets, weights)
        else:
            loss = -(logprobs(hidden, head, targets) * weights).sum()
        loss.backward()
        found[size] = _status_mib("VmHWM") - before
    hidden_mib = hidden.numel() * 4 / 2**20
    return {
        "extra_mib": round(found[vocabulary] - hidden_mib, 1),
        "logits_mib": round(NUM_POSITIONS * vocabulary * 4 / 2**20, 1),
    }


def _status_mib(name: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) / 1024


if __name__ == "__main__":
    main()
