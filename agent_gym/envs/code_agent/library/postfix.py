"""Arithmetic in postfix notation, with whole numbers, + - * / and spaces; / rounds down."""

PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}


def apply_operator(operator: str, left: int, right: int) -> int:
    """Return the result; raise ZeroDivisionError for division by 0 and ValueError for an unknown operator."""
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if operator == "*":
        return left * right
    if operator == "/":
        return left // right
    raise ValueError("unknown operator")


def evaluate_postfix(expression: str) -> int:
    """Return the value of the expression, e.g. '1 2 + 3 *' is 9; numbers may be negative.

    Raises ValueError if operands are missing or left over, or something is neither number nor operator.
    """
    stack: list[int] = []
    for part in expression.split():
        if part not in PRECEDENCE:
            stack.append(int(part))
            continue
        if len(stack) < 2:
            raise ValueError("missing operand")
        right = stack.pop()
        left = stack.pop()
        stack.append(apply_operator(part, left, right))
    if len(stack) != 1:
        raise ValueError("not one result")
    return stack[0]


def to_postfix(expression: str) -> str:
    """Return an infix expression, its parts separated by spaces, in postfix; * and / bind tighter, all to the left.

    Raises ValueError if the round brackets do not match.
    """
    output: list[str] = []
    waiting: list[str] = []
    for part in expression.split():
        if part == "(":
            waiting.append(part)
        elif part == ")":
            while waiting and waiting[-1] != "(":
                output.append(waiting.pop())
            if not waiting:
                raise ValueError("bracket not opened")
            waiting.pop()
        elif part in PRECEDENCE:
            while waiting and waiting[-1] != "(" and PRECEDENCE[waiting[-1]] >= PRECEDENCE[part]:
                output.append(waiting.pop())
            waiting.append(part)
        else:
            output.append(part)
    if "(" in waiting:
        raise ValueError("bracket not closed")
    return " ".join(output + waiting[::-1])
