"""W3: 32 requests at once that share 512 tokens, 32 own ones, 32 out: wall time, and what was shared."""

from __future__ import annotations

from common import Bench, argument_parser, growth, metrics, run_jobs, spread
from hf_baseline import HFBaseline
from roofline import least_time_s
from workloads import shared_prefix


def main() -> None:
    """Measure and write the record."""
    parser = argument_parser(__doc__)
    parser.add_argument("--prefix", type=int, default=512)
    args = parser.parse_args()
    bench = Bench.start("prefix", args)
    vocab = bench.shape.vocab
    with bench.open_llm(max_num_seqs=32, max_model_len=args.prefix + 256) as llm:
        run_jobs(llm, shared_prefix(vocab, 99, 4, args.prefix, num_outputs=4))
        before = metrics(llm)
        walls = [
            run_jobs(llm, shared_prefix(vocab, repeat, prefix=args.prefix)) for repeat in range(args.repeats)
        ]
        grown = growth(before, metrics(llm))
    with bench.open_llm(max_num_seqs=32, max_model_len=args.prefix + 256, enable_prefix_caching=False) as llm:
        run_jobs(llm, shared_prefix(vocab, 99, 4, args.prefix, num_outputs=4))
        uncached_s = run_jobs(llm, shared_prefix(vocab, 0, prefix=args.prefix))
    jobs = shared_prefix(vocab, 0, prefix=args.prefix)
    median = spread(walls)["median"]
    best_s = least_time_s(bench.shape, jobs, bench.limits, shared_prefix=args.prefix)
    results: dict[str, object] = {
        "wall_s": spread(walls),
        "output_tokens_per_s": round(sum(job.num_outputs for job in jobs) / median, 1),
        "roofline_fraction": round(best_s / median, 3),
        "cached_share_of_prompts": round(grown["prefix_cache_hits"] / grown["prefix_cache_queries"], 3),
        "without_prefix_cache_s": round(uncached_s, 4),
        "speedup_over_uncached": round(uncached_s / median, 2),
    }
    if args.compare_hf:
        results["hf_wall_s"] = round(HFBaseline(bench.model, args.device).run(jobs), 4)
    bench.write(results)


if __name__ == "__main__":
    main()
