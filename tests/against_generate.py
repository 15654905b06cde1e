"""What `generate` is asked for beside ours, and how its answers are compared."""

import torch

INVALID_SCORE = -1e5  # what `generate` scores to fill a list lies far below, what it finds far above


def children_of(sequences, eos):
    """What may follow each prefix of the sequences, EOS after a whole one: {prefix: tokens}."""
    children = {}
    for sequence in sequences:
        for depth, token in enumerate(sequence):
            children.setdefault(tuple(sequence[:depth]), set()).add(token)
        if eos is not None:
            children.setdefault(tuple(sequence), set()).add(eos)
    return children


def assert_same(expected, output, prompt):
    """The same sequences in the same order, with the same scores and beams; junk only where there is junk."""
    if expected.get("sequences_scores") is None:  # greedy search
        assert output.found.all()
        assert torch.equal(output.sequences, expected.sequences)
        return
    legal = output.sequences_scores.isfinite()
    assert torch.equal(legal, expected.sequences_scores > INVALID_SCORE)
    torch.testing.assert_close(output.sequences_scores[legal], expected.sequences_scores[legal], atol=1e-4, rtol=1e-4)
    for row in legal.nonzero()[:, 0]:
        beams = [each.beam_indices[row][each.beam_indices[row] >= 0].tolist() for each in (output, expected)]
        assert beams[0] == beams[1]
        end = prompt + len(beams[0])
        assert output.sequences[row, :end].tolist() == expected.sequences[row, :end].tolist()
    if legal.all():
        # Without an EOS token, transformers pads with -1, which no tokenizer can decode.
        padded = expected.sequences.where(expected.sequences >= 0, output.sequences)
        assert torch.equal(output.sequences, padded)
