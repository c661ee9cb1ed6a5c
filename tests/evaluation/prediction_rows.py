"""Prediction rows as the runner writes them, for the tests of scores and metrics."""


def rows_of(benchmark, *answers):
    """Prediction rows of these answers to the benchmark's first samples."""
    samples = [benchmark[number] for number in range(len(answers))]
    rows = [{key: sample.get(key) for key in ("index", "type", "prompt", "GT")} for sample in samples]
    scores = [benchmark.score(answer, sample) for answer, sample in zip(answers, samples)]
    return [{**row, "answer": answer, "score": score} for row, answer, score in zip(rows, answers, scores)]
