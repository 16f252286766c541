"""W1: 64 requests at once, lengths as in chat logs: output tokens per second, KV waste, roofline share."""

from __future__ import annotations

from common import Bench, argument_parser, growth, host_share, metrics, run_jobs, spread
from hf_baseline import HFBaseline
from quire import LLM
from roofline import least_time_s
from workloads import Job, sharegpt_like


def main() -> None:
    """Measure and write the record."""
    parser = argument_parser(__doc__)
    parser.add_argument("--num-requests", type=int, default=64)
    args = parser.parse_args()
    bench = Bench.start("throughput", args)
    vocab = bench.shape.vocab
    with bench.open_llm(max_num_seqs=args.num_requests, max_model_len=1024) as llm:
        run_jobs(llm, [Job(job.prompt[:64], 8) for job in sharegpt_like(vocab, 99, 16)])
        walls, details = _measure(llm, vocab, args.repeats, args.num_requests)
    jobs = sharegpt_like(vocab, 0, args.num_requests)
    num_outputs = sum(job.num_outputs for job in jobs)
    best_s = least_time_s(bench.shape, jobs, bench.limits)
    results: dict[str, object] = {
        "output_tokens_per_s": spread([num_outputs / wall for wall in walls], 1),
        "wall_s": spread(walls),
        "roofline_output_tokens_per_s": round(num_outputs / best_s, 1),
        "roofline_fraction": round(best_s / spread(walls)["median"], 3),
        **details,
    }
    if args.compare_hf:
        baseline = HFBaseline(bench.model, args.device)
        baseline.run([Job(job.prompt[:32], 4) for job in jobs[:4]])
        hf_s = baseline.run(jobs)
        results["hf_output_tokens_per_s"] = round(num_outputs / hf_s, 1)
        results["speedup_over_hf"] = round(hf_s / spread(walls)["median"], 2)
    bench.write(results)


def _measure(llm: LLM, vocab: int, repeats: int, count: int) -> tuple[list[float], dict[str, object]]:
    before = metrics(llm)
    walls = [run_jobs(llm, sharegpt_like(vocab, repeat, count)) for repeat in range(repeats)]
    grown = growth(before, metrics(llm))
    return walls, {
        "kv_waste": round(grown["kv_slots_wasted"] / grown["kv_slots_allocated"], 4),
        "host_share": round(host_share(grown, sum(walls)), 4),
        "num_preemptions": grown["num_preemptions"],
        "num_steps": grown["num_steps"],
    }


if __name__ == "__main__":
    main()
