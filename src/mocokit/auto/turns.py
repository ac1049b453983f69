"""When a run that follows the clock had how many steps left, and where in its schedule that puts a step.

Written ``STEP:LEFT,STEP:LEFT``, from ``0:STEPS`` on. The share that is done grows evenly between turns, so schedules,
which are functions of it, bend there but do not jump.
"""

Turn = tuple[int, int]  # a step, and how many were left there


def parse_turns(text: str | None) -> list[Turn]:
    """``STEP:LEFT,STEP:LEFT`` as pairs; raises ValueError for anything else, or steps that are not in order."""
    turns = [(int(step), int(left)) for step, left in (turn.split(":") for turn in (text or "").split(",") if turn)]
    ends = [step + left for step, left in turns]
    later = zip(turns, ends, turns[1:], strict=False)
    if (turns and turns[0][0] != 0) or any(left < 1 for _, left in turns):
        raise ValueError(text)
    if any(not turn[0] < following[0] < end for turn, end, following in later):
        raise ValueError(text)
    return turns


def format_turns(turns: list[Turn]) -> str:
    """The inverse of `parse_turns`."""
    return ",".join(f"{step}:{left}" for step, left in turns)


def position(step: int, turns: list[Turn]) -> float:
    """Where in a schedule of as many steps as were left at the first of ``turns`` the run is at ``step``."""
    (_, planned), done, since, left = turns[0], 0.0, 0, turns[0][1]
    for turn, left_there in turns[1:]:
        if turn >= step:
            break
        done += (planned - done) * (turn - since) / left
        since, left = turn, left_there
    return done + (planned - done) * (step - since) / left
