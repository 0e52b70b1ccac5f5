"""Rewards: pure functions of a sample and a completion's text, and the pool that runs them under a time limit.

Your own reward is a function in any importable module. This one, in `my_rewards.py`, pays for a box that is near enough
and charges for rambling:

    from rewards.iou import box_iou
    from rewards.score import Completion, Score
    from data.sample import Sample

    def near_and_brief(sample: Sample, completion: Completion, *, good: float = 0.5, limit: int = 400) -> Score:
        overlap = box_iou(sample, completion)
        hit = 1.0 if overlap >= good else 0.0
        brevity = min(1.0, limit / max(len(completion.text), 1))
        return Score(0.9 * hit + 0.1 * brevity, parts={"iou": overlap, "hit": hit, "brevity": brevity})

Check it, then name it in the recipe:

    python -m rewards.check my_rewards:near_and_brief
    python -m rl.train recipes/locus/tiny.yaml reward.name=my_rewards:near_and_brief reward.kwargs.limit=200
"""
