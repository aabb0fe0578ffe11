"""Commands for a robot: F (forward), L (turn left) and R (turn right); a number repeats, as in '3F'."""


def expand(program: str) -> str:
    """Return the single commands; a number applies to the command or to the bracket after it: '2(FL)' is 'FLFL'.

    Raises ValueError for another character, a bracket without partner or a number with nothing after it.
    """
    stack: list[tuple[str, int]] = []
    done = ""
    number = ""
    for char in program:
        if char.isdigit():
            number += char
            continue
        times = int(number or "1")
        if char == "(":
            stack.append((done, times))
            done = ""
        elif char == ")" and stack and not number:
            before, repeat = stack.pop()
            done = before + done * repeat
        elif char in "FLR":
            done += char * times
        else:
            raise ValueError("bad command")
        number = ""
    if stack or number:
        raise ValueError("unfinished program")
    return done


def simplify(single: str) -> str:
    """Return single commands without turns that cancel: LR and RL vanish, LLL is R, RRR is L, four turns are none."""
    result = ""
    for part in single.replace("F", " F ").split(" "):
        if part == "F":
            result += part
        else:
            turns = (part.count("R") - part.count("L")) % 4
            result += "L" if turns == 3 else "R" * turns
    return result
