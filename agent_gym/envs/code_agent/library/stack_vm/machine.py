"""Running the code of the stack machine."""

from assembly import assemble


def execute(name: str, stack: list[int]) -> list[int]:
    """Return the stack, its top last, after add, sub (second minus top), mul, dup or swap.

    Raises IndexError if the stack is too short.
    """
    if name == "dup":
        return [*stack, stack[-1]]
    right, left = stack[-1], stack[-2]
    rest = stack[:-2]
    if name == "swap":
        return [*rest, right, left]
    results = {"add": left + right, "sub": left - right, "mul": left * right}
    return [*rest, results[name]]


def run(source: str, limit: int) -> list[int]:
    """Return the printed numbers; print takes the top off the stack, jzero jumps if the top it takes off is 0.

    Raises RuntimeError if the program has not ended after limit instructions, IndexError if the stack is too short.
    """
    code = assemble(source)
    stack: list[int] = []
    printed: list[int] = []
    position = 0
    for _ in range(limit):
        if position >= len(code):
            return printed
        name, argument = code[position]
        position += 1
        if name == "print":
            printed.append(stack.pop())
        elif name == "push" and argument is not None:
            stack.append(argument)
        elif argument is not None:
            if name == "jump" or stack.pop() == 0:
                position = argument
        else:
            stack = execute(name, stack)
    if position < len(code):
        raise RuntimeError("too many instructions")
    return printed


def stack_change(source: str) -> int:
    """Return by how many numbers the stack grows if every instruction is run once in order."""
    changes = {"push": 1, "dup": 1, "swap": 0, "jump": 0}
    return sum(changes.get(name, -1) for name, _ in assemble(source))
