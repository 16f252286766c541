"""A few questions for the embedded model, through the whole engine: offline, on the CPU."""

from __future__ import annotations

import time

from quire import LLM, SamplingParams

QUESTIONS = [
    ("greeting", "Hello!"),
    ("sum", "What is 34 + 25?"),
    ("difference", "What is 81 - 46?"),
    ("capital", "What is the capital of France?"),
    ("reverse", "Reverse the word: planet"),
    ("spelling", "Spell the word: garden"),
    ("letters", "How many letters are in the word window?"),
    ("JSON", "Give the capital of Italy as JSON."),
]
MEMORY = ["My name is Nora.", "What is 12 + 7?", "What is my name?"]


def main() -> None:
    """Ask everything in one batch, then hold a conversation of three turns."""
    params = SamplingParams(temperature=0.0, max_tokens=64)
    with LLM(model="tiny", max_model_len=512, max_num_seqs=16) as llm:
        conversations = [[{"role": "user", "content": text}] for _, text in QUESTIONS]
        start = time.perf_counter()
        outputs = llm.chat(conversations, params, use_tqdm=False)
        wall_s = time.perf_counter() - start
        for (skill, question), output in zip(QUESTIONS, outputs, strict=True):
            print(f"{skill:>10}  > {question}\n{'':>10}    {output.outputs[0].text.strip()}")
        _converse(llm, params)
    num_tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    print(f"\n{len(QUESTIONS)} questions in one batch: {num_tokens} tokens in {wall_s:.2f} s")
    print("now try: .venv/bin/quire chat --model tiny")


def _converse(llm: LLM, params: SamplingParams) -> None:
    history: list[dict[str, str]] = []
    for text in MEMORY:
        history.append({"role": "user", "content": text})
        [output] = llm.chat(history, params, use_tqdm=False)
        answer = output.outputs[0].text.strip()
        history.append({"role": "assistant", "content": answer})
        print(f"{'memory':>10}  > {text}\n{'':>10}    {answer}")


if __name__ == "__main__":
    main()
