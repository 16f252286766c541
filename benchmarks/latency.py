"""W2: one request of 128 tokens in and out: TTFT and inter-token latency. W4: TTFT of a 4096-token prompt."""

from __future__ import annotations

import statistics
import time

from common import Bench, argument_parser, greedy, spread
from quire import LLM
from roofline import StepCost, least_time_s
from workloads import Job, single


def main() -> None:
    """Measure and write the record."""
    parser = argument_parser(__doc__)
    parser.add_argument("--long-prompt", type=int, default=4096)
    args = parser.parse_args()
    bench = Bench.start("latency", args)
    vocab = bench.shape.vocab
    with bench.open_llm(max_num_seqs=1, max_model_len=args.long_prompt + 256) as llm:
        token_times(llm, single(vocab, 99, 128, 16))
        short = [token_times(llm, single(vocab, repeat, 128, 128)) for repeat in range(args.repeats)]
        first = [
            token_times(llm, single(vocab, 50_000 + repeat, args.long_prompt, 2))[0]
            for repeat in range(args.repeats)
        ]
    intervals = [(times[-1] - times[0]) / (len(times) - 1) for times in short]
    job = single(vocab, 0, 128, 128)
    best_ttft_s = _prefill_s(bench, 128)
    best_itl_s = (least_time_s(bench.shape, [job], bench.limits) - best_ttft_s) / (job.num_outputs - 1)
    best_long_s = _prefill_s(bench, args.long_prompt)
    bench.write(
        {
            "ttft_s": spread([times[0] for times in short]),
            "ttft_roofline_fraction": round(best_ttft_s / statistics.median(times[0] for times in short), 3),
            "itl_s": spread(intervals, 5),
            "itl_p99_s": spread([_p99_gap(times) for times in short], 5),
            "decode_tokens_per_s": spread([1 / interval for interval in intervals], 1),
            "itl_roofline_fraction": round(best_itl_s / statistics.median(intervals), 3),
            "long_prompt_ttft_s": spread(first),
            "long_prompt_roofline_fraction": round(best_long_s / statistics.median(first), 3),
        }
    )


def token_times(llm: LLM, job: Job) -> list[float]:
    """Seconds from submission to each token."""
    times: list[float] = []
    start = time.perf_counter()
    for output in llm.stream(job.prompt, greedy(job.num_outputs)):
        now = time.perf_counter() - start
        times += [now] * (len(output.outputs[0].token_ids) - len(times))
    if len(times) != job.num_outputs:
        raise RuntimeError(f"{len(times)} tokens came, {job.num_outputs} were asked for")
    return times


def _prefill_s(bench: Bench, num_tokens: int) -> float:
    cost = StepCost(bench.shape)
    cost.add(0, num_tokens)
    return bench.limits.least_time_s(cost.num_bytes, cost.num_flops)


def _p99_gap(times: list[float]) -> float:
    gaps = sorted(later - earlier for earlier, later in zip(times, times[1:], strict=False))
    return gaps[min(len(gaps) - 1, int(0.99 * len(gaps)))]


if __name__ == "__main__":
    main()
