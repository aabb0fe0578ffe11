"""Ten-pin bowling; rolls are the numbers of pins knocked down, in order."""


def split_frames(rolls: list[int]) -> list[list[int]]:
    """Return the rolls by frame: two rolls, or one strike (10); the tenth frame takes all that is left.

    Raises ValueError for a roll outside 0..10 or more than 10 pins in one of the first nine frames.
    """
    frames: list[list[int]] = []
    position = 0
    while position < len(rolls) and len(frames) < 9:
        size = 1 if rolls[position] == 10 else 2
        frames.append(rolls[position : position + size])
        position += size
    if position < len(rolls):
        frames.append(rolls[position:])
    if any(not 0 <= roll <= 10 for roll in rolls) or any(sum(frame) > 10 for frame in frames[:9]):
        raise ValueError("impossible roll")
    return frames


def score(rolls: list[int]) -> int:
    """Return the score so far: all pins, plus the next roll after a spare and the next two after a strike.

    Only the first nine frames earn such extra points; rolls still to come count 0.
    """
    total = sum(rolls)
    position = 0
    for frame in split_frames(rolls)[:9]:
        position += len(frame)
        if sum(frame) == 10:
            extra = 2 if len(frame) == 1 else 1
            total += sum(rolls[position : position + extra])
    return total


def is_finished(rolls: list[int]) -> bool:
    """Return whether the game is over: the tenth frame has two rolls, or three after a strike or a spare in it."""
    frames = split_frames(rolls)
    if len(frames) < 10:
        return False
    last = frames[9]
    return len(last) == 3 or (len(last) == 2 and sum(last) < 10)


def marks(rolls: list[int]) -> str:
    """Return the first nine frames as 'X' for a strike, like '7/' for a spare or '72', with '-' for no pins,
    separated by spaces."""
    texts = []
    for frame in split_frames(rolls)[:9]:
        if frame == [10]:
            texts.append("X")
        elif len(frame) == 2 and sum(frame) == 10:
            texts.append(f"{frame[0]}/".replace("0", "-"))
        else:
            texts.append("".join(str(roll) for roll in frame).replace("0", "-"))
    return " ".join(texts)
