"""How the arguments of every public function of the library are drawn.

`INPUTS[program][function]` draws the positional arguments; in a program of several files the key is `part.function`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from agent_gym.envs.code_agent.draw import (
    Draw,
    args,
    bind,
    choice,
    const,
    dict_of,
    distinct,
    flag,
    grid,
    integer,
    joined,
    list_of,
    mostly,
    number,
    one_of,
    pair,
    sorted_list,
    spoiled,
    subset,
    text,
    then,
    word,
)

# Shared ingredients --------------------------------------------------------------------------------------------------

small = integer(0, 9)
signed = integer(-9, 9)
ints = list_of(signed, 0, 8)
positives = list_of(integer(1, 20), 0, 7)
halves = list_of(number(-5, 15), 0, 7)
letter = choice(*"abcde")
letters = list_of(letter, 0, 8)
names = choice("ann", "bob", "cy", "dee")
fruit = choice("apple", "fig", "kiwi", "pear", "plum")
prose_word = choice("the", "a", "cat", "dog", "Sun", "rain", "window", "of", "extraordinary", "sea")
prose = joined(prose_word, 0, 9)
count_or_negative = mostly(integer(1, 5), integer(-1, 0))


def interval(low: int, high: int, longest: int = 8) -> Draw:
    """A pair (start, end) with low <= start < end, at most `longest` apart."""
    return bind(integer(low, high), lambda start: pair(const(start), integer(start + 1, start + longest)))


def permuted(low: int, high: int) -> Draw:
    """A permutation of 0..n-1 as a list, n from low to high."""
    return bind(integer(low, high), lambda size: subset(range(size), size, size))


def rows_of(alphabet: str, low: int, high: int, longest: int) -> Draw:
    """A list of equally long strings."""
    cells = grid(choice(*alphabet), integer(low, high), integer(1, longest))
    return then(cells, lambda rows: ["".join(row) for row in rows])


def clustered(high: int, size: int) -> Draw:
    """A sorted list of times from 0 on with small and large gaps."""
    gaps = list_of(one_of(integer(0, 3), integer(0, high)), 0, size)
    return then(gaps, lambda steps: [int(total) for total in np.cumsum(steps)])


point = mostly(interval(0, 25), integer(0, 25))
segments = list_of(
    mostly(mostly(interval(0, 25), then(integer(0, 25), lambda at: (at, at))), const((7, 3)), 0.03), 0, 6
)
hours = list_of(interval(6, 18, 4), 0, 6)
sorted_ints = sorted_list(integer(0, 15), 0, 9)
matrix = bind(integer(1, 3), lambda width: grid(integer(-4, 5), mostly(integer(1, 3), const(0)), const(width)))
ragged = list_of(list_of(signed, 1, 2), 2, 3)
graph = then(
    dict_of(letter, list_of(letter, 0, 3), 0, 5),
    lambda drawn: {"a": ["b"], **{k: list(dict.fromkeys(v)) for k, v in drawn.items()}},
)


def needs(rng: np.random.Generator) -> dict[str, list[str]]:
    """Task requirements, mostly without cycle: a task mostly needs tasks that come before it in the alphabet."""
    tasks = "abcdef"
    result = {}
    for index in rng.permutation(6)[: int(rng.integers(0, 6))]:
        pool = tasks if rng.random() < 0.05 else tasks[: int(index)]
        result[tasks[int(index)]] = subset(pool, 0, min(3, len(pool)))(rng)
    return result


roads = list_of(pair(letter, letter, mostly(integer(0, 9), const(-1), 0.03)), 0, 5)
rooted_roads = then(roads, lambda drawn: [("a", "c", 4), *drawn])
groups_args = bind(
    integer(0, 7),
    lambda count: args(
        const(count), list_of(pair(*[mostly(integer(0, max(0, count - 1)), const(count), 0.04)] * 2), 0, 6)
    ),
)
cipher_text = text([*"abcxyzABZ", " ", "Hello", "zoo", "!", "7"], 0, 8)
csv_field = text(["a", "b", "x y", ",", '"', "12"], 0, 3)
ini_line = one_of(
    const("[main]"),
    const("[ log ]"),
    const(""),
    const("# note"),
    const("; x=1"),
    choice("a = 1", "B=two", "key = x = y", "  a=3 ", "flag = Yes"),
    mostly(const("n=0"), const("oops"), 0.1),
)
config = dict_of(
    choice("", "main", "log"), dict_of(choice("a", "b", "flag"), choice("1", "yes", "Off", "x y", "maybe"), 0, 2), 0, 3
)
data_args = one_of(
    args(
        const({"a": {"b": [1, 2, {"c": 3}]}, "x": [[4, 5], [6]]}),
        choice("a", "a.b[0]", "a.b[2].c", "x[0][1]", "x[1]", "", "a.c", "x[2]", "x[1][0]", "a.b[9]"),
    ),
    args(
        const({"users": [{"name": "ann"}, {"name": "bob"}]}), choice("users[1].name", "users[0]", "users[2]", "users")
    ),
    args(const([10, {"z": [1]}, [2, 3]]), choice("[0]", "[1].z", "[1].z[0]", "[2][1]", "[3]", "[2][x]")),
)
version = mostly(
    choice(
        "1", "1.0", "1.2", "1.10", "1.2.0", "1.2.3", "2.0", "2.0-rc1", "2.0-rc2", "2.0.1-beta", "1.2-a", "0.9", "10.0"
    ),
    choice("1.x", "", "v2"),
    0.04,
)
priorities = sorted_list(integer(0, 5), 0, 4)
queues = list_of(then(list_of(pair(integer(1, 4), word(1, 2)), 0, 3), lambda items: sorted(items, reverse=True)), 0, 3)
coins = mostly(subset([1, 2, 5, 10, 20, 50], 1, 4), mostly(subset([3, 4, 6, 7, 9], 1, 3), const([5, 0]), 0.15), 0.4)
pack_items = then(
    list_of(pair(integer(1, 6), integer(1, 9)), 0, 5),
    lambda drawn: [("abcde"[i], w, v) for i, (w, v) in enumerate(drawn)],
)
capacity = mostly(integer(0, 14), const(-1), 0.05)
rich = then(dict_of(names, integer(20, 90), 0, 1), lambda drawn: {"ann": 50, "bob": 30, **drawn})
short_word = word(0, 6, "abcn")
board9 = then(
    list_of(choice("X", "O", " ", "X", "O"), 9, 9), lambda cells: ["".join(cells[i : i + 3]) for i in (0, 3, 6)]
)
played = then(  # a position after some moves in random order
    pair(permuted(9, 9), integer(0, 9)),
    lambda drawn: [
        "".join(" " if drawn[0].index(r * 3 + c) >= drawn[1] else "XO"[drawn[0].index(r * 3 + c) % 2] for c in range(3))
        for r in range(3)
    ],
)


def poker_hand(rng: np.random.Generator) -> list[str]:
    """Five cards, often close to a special category."""
    ranks = "23456789TJQKA"
    kind = int(rng.integers(0, 5))
    start = int(rng.integers(-1, 9))
    if kind == 0:
        values = [ranks[(start + i) % 13] for i in range(5)]
    elif kind == 1:
        values = [ranks[int(i)] for i in rng.choice(13, 5, replace=False)]
    else:
        few = [ranks[int(i)] for i in rng.choice(13, int(rng.integers(2, 5)), replace=False)]
        values = [few[i % len(few)] if i < len(few) else few[int(rng.integers(0, len(few)))] for i in range(5)]
    if kind < 2 and rng.random() < 0.5:
        suits = ["CDHS"[int(rng.integers(0, 4))]] * 5
    else:
        suits = ["CDHS"[int(rng.integers(0, 4))] for _ in range(5)]
    return [values[int(i)] + suits[int(i)] for i in rng.permutation(5)]


brackets_table = mostly(
    then(
        pair(sorted_list(integer(1, 40), 0, 3), list_of(integer(0, 50), 4, 4)),
        lambda drawn: list(zip([0, *dict.fromkeys(bound * 100 for bound in drawn[0])], drawn[1], strict=False)),
    ),
    choice([], [(10, 5)], [(0, 10), (0, 20)], [(0, 120)]),
    0.08,
)
odd_brackets = list_of(pair(choice(0, 0, 10, 20, 30), choice(-1, 0, 5, 100, 101)), 1, 3)
income = one_of(integer(0, 5000), then(integer(0, 45), lambda hundreds: hundreds * 100))
cinema = rows_of("x..", 1, 4, 6)
roomy = then(rows_of("x....", 2, 4, 3), lambda rows: [row + "." for row in rows])
seat = mostly(
    then(pair(integer(1, 4), choice(*"ABCDEa")), lambda s: f"{s[0]}{s[1]}"), choice("A1", "0A", "", "12", "3"), 0.1
)
query_value = text(["a", "b", " ", "&", "=", "ü", "+", "/", "-"], 0, 4)
query_dict = dict_of(choice("a", "b c", "q", "id"), list_of(query_value, 1, 2), 0, 3)
query = joined(
    then(pair(choice("a", "b", "q%20x", "id"), choice("", "=", "=1", "=x+y", "=%41%2f", "=a=b", "=%C3")), "".join),
    0,
    4,
    "&",
)
percent_text = spoiled(text(["%20", "%41", "%2f", "%C3", "a", "+", "b"], 0, 5), "%+z", 0.2)
template = spoiled(text(["Dear ", "{name}", "{title|Dr}", "{{", "!", "{x|}", " and ", "}", "{city}"], 0, 5), "{}|", 0.1)
template_values = dict_of(choice("name", "title", "city", "x"), choice("Ann", "", "Rome", "{y}"), 1, 4)
markup_line = one_of(
    choice("# Top", "## Part one", "### Deep", "#nospace", "####### seven", "# "),
    choice(
        "- item",
        "- *bold* item",
        "plain",
        "",
        "a `code` b",
        "see [docs](http://x.y) now",
        "[a](b)[c](d)",
        "[open](",
        "x[1] (y)",
    ),
)
markup_text = joined(markup_line, 0, 5, "\n")
outline_text = joined(choice("# One", "## Two", "## Two", "### Three", "# Four", "text", "## Five"), 0, 6, "\n")
good_outline = then(outline_text, lambda drawn: "# Start\n" + drawn)
bits = one_of(integer(0, 40), choice(0, 1, 2, 3, 127, 128, 255, 256, 1023, 1024))
base = mostly(integer(2, 36), choice(0, 1, 37), 0.06)
digit_text = one_of(
    text("01", 1, 8),
    text("0123456789", 1, 5),
    text("-", 0, 1),
    then(text("0123456789abcdefXYZ", 1, 4), lambda t: "-" + t),
)
digits = text("0123456789", 1, 14)
luhn_number = spoiled(
    choice("79927398713", "4539 1488 0343 6467", "1234-5674", "00", "18", "0", "59", "6011000990139424"),
    "0123456789 x",
    0.5,
)
isbn = spoiled(
    choice("0-306-40615-2", "097522980X", "0201530821", "3-16-148410-0", "0306406152", "080442957X"), "0123X-", 0.4
)
ean = mostly(then(text("0123456789", 12, 12), lambda t: t[:3] + "-" + t[3:]), choice("12345", "4006381333a3"), 0.1)
sentence_part = choice(
    "the cat", "A dog!", "The end.", "rain, rain", "well: yes", "Oh?", "...", "sea; the sea", "cat's"
)
sentences = joined(sentence_part, 0, 5)
plain_value = choice(1, 2, 1.5, "x", "y", None, True)
flat_dict = dict_of(letter, plain_value, 0, 4)
change = one_of(
    pair(const("add"), choice(*"xyz"), plain_value),
    pair(choice("remove", "set"), choice(*"ab"), plain_value),
    pair(mostly(choice("add", "set", "remove"), const("move"), 0.1), letter, plain_value),
)
changes = list_of(change, 0, 3)
any_changes = list_of(pair(choice("add", "set", "remove"), choice(*"abc"), choice(1, 2)), 0, 3)
times = clustered(20, 7)
shuffled_times = bind(times, lambda drawn: subset(drawn, len(drawn), len(drawn)))
amount_text = spoiled(
    choice("1,234.50", "-3.5", "7", "0.05", "12,345,678", "-0.99", "100.", "3.", "1000", "-1,000.01"), "0123-.,", 0.3
)
cents = one_of(integer(-2000, 2000), choice(0, 5, 99, 100, 99999, 100000, 123456789, -100000, -7))
seconds = one_of(integer(0, 200), choice(0, 59, 60, 3599, 3600, 5400, 86399, 86400, 90061, 129600), integer(0, 200000))
duration = mostly(
    choice("1h30m", "2d", "45s", "1d1s", "90m", "10h5m", "0s", "3d4h5m6s", "59m59s"),
    choice("", "5", "m", "1m2h", "h5", "1x"),
    0.1,
)
sparse = dict_of(integer(0, 8), choice(-3, -2, -1, 1, 2, 5), 0, 4)
vocabulary = list_of(choice("car", "cart", "cat", "do", "dog", "done", "a", "an", "", "tea"), 0, 6)


def _tree(entries: list[str]) -> dict[str, Any]:
    """The prefix tree of some words."""
    root: dict[str, Any] = {}
    for entry in entries:
        node = root
        for char in entry:
            node = node.setdefault(char, {})
        node[""] = True
    return root


short_words = list_of(choice("car", "cat", "cats", "do", "dot", "a", "an", "ca"), 0, 4)
box = then(
    pair(integer(0, 8), integer(0, 8), integer(1, 6), integer(1, 6)), lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


def arithmetic(numbers: Draw, symbols: str, depth: int = 2, negation: str = "") -> Draw:
    """A correct infix expression as a list of parts."""

    def draw(rng: np.random.Generator, level: int) -> list[str]:
        if level == 0 or rng.random() < 0.2:
            return [numbers(rng)]
        left, right = draw(rng, level - 1), draw(rng, level - 1)
        parts = [*left, symbols[int(rng.integers(0, len(symbols)))], *right]
        if negation and rng.random() < 0.15:
            return [negation, "(", *parts, ")"]
        return ["(", *parts, ")"] if rng.random() < 0.3 else parts

    return lambda rng: draw(rng, depth)


infix = then(arithmetic(choice("1", "2", "3", "7", "10"), "+-*/", 3), " ".join)


def postfix_text(rng: np.random.Generator) -> str:
    """A correct postfix expression."""
    stack: list[str] = []
    for _ in range(int(rng.integers(1, 8))):
        if len(stack) >= 2 and rng.random() < 0.6:
            right, left = stack.pop(), stack.pop()
            stack.append(f"{left} {right} {'+-*/'[int(rng.integers(0, 4))]}")
        else:
            stack.append(str(int(rng.integers(-3, 10))))
    while len(stack) > 1:
        right, left = stack.pop(), stack.pop()
        stack.append(f"{left} {right} {'+-*'[int(rng.integers(0, 3))]}")
    return stack[0]


picture = rows_of("aab", 1, 4, 5)
cell_args = bind(
    picture,
    lambda rows: args(
        const(tuple(rows)),
        mostly(integer(0, len(rows) - 1), const(len(rows)), 0.08),
        mostly(integer(0, len(rows[0]) - 1), const(-1), 0.08),
    ),
)
cell_list_args = then(cell_args, lambda drawn: (list(drawn[0]), *drawn[1:]))
pages_text = mostly(
    joined(choice("1", "3", "2-5", "7-9", "4 - 6", "10", "12-12", "5-8"), 0, 4, ","),
    choice("5-3", "x", "1,,2", "-4", " "),
    0.12,
)
clock = mostly(
    one_of(
        then(pair(integer(0, 23), integer(0, 59)), lambda t: f"{t[0]:02d}:{t[1]:02d}"),
        choice("00:00", "12:00", "23:59", "12:30", "00:05", "11:59", "13:00", "09:00"),
    ),
    choice("24:00", "9:30", "12-30", "10:60", "aa:bb"),
    0.06,
)
name_text = choice(
    "two words",
    "snake_case_name",
    "camelCase",
    "HTTPServer",
    "parseXML",
    "kebab-case",
    "already",
    "lord of the rings",
    "The_end",
    "a_b",
    "x1Y2",
    "one__two",
    "aBC",
    "an apple a day",
    "",
    "Of Mice",
    "user_ID",
)
color = pair(*[one_of(integer(0, 255), choice(0, 255, 128))] * 3)
wide_color = pair(*[one_of(integer(0, 255), choice(-5, 0, 255, 256, 300, 15))] * 3)
color_text = spoiled(
    then(one_of(text("0123456789abcdefABF", 6, 6), text("0123456789abcF", 3, 3)), lambda t: "#" + t), "0f#g", 0.12
)
ballot = subset(["ann", "bob", "cy"], 1, 3)
ballots = list_of(ballot, 0, 5)
square = mostly(
    then(pair(choice(*"abcdefgh"), integer(1, 8)), lambda s: f"{s[0]}{s[1]}"), choice("i1", "a9", "a", "a10"), 0.04
)
fraction = pair(integer(-9, 9), integer(1, 12))
prices = list_of(integer(1, 20), 0, 8)
trade = one_of(pair(const("buy"), integer(1, 9), integer(1, 20)), pair(const("sell"), integer(1, 4), integer(1, 20)))
trade_list = then(list_of(trade, 0, 4), lambda drawn: [("buy", 6, 10), *drawn])
address = mostly(
    one_of(
        joined(then(integer(0, 255), str), 4, 4, "."),
        choice("10.0.0.1", "10.0.1.0", "10.1.2.3", "192.168.0.77", "0.0.0.0"),
    ),
    choice("10.0.0", "1.2.3.256", "a.b.c.d", "1.2.3.4.5"),
    0.08,
)
network = mostly(
    choice(
        "10.0.0.0/8", "10.0.0.0/24", "10.1.0.0/16", "192.168.0.64/26", "0.0.0.0/0", "10.0.0.1/32", "192.168.0.77/28"
    ),
    choice("10.0.0.0", "10.0.0.0/33"),
    0.06,
)
routes = list_of(
    pair(choice("10.0.0.0/8", "10.0.0.0/24", "10.1.0.0/16", "0.0.0.0/0"), choice("up", "down", "dmz")), 0, 3
)
abc = text("abc", 0, 7)


def mixed_args(rng: np.random.Generator) -> tuple[str, str, str]:
    """Two texts and, mostly, one of their interleavings."""
    first, second = text("ab", 0, 4)(rng), text("abc", 0, 4)(rng)
    mixed, i, j = "", 0, 0
    while i < len(first) or j < len(second):
        if j == len(second) or (i < len(first) and rng.random() < 0.5):
            mixed, i = mixed + first[i], i + 1
        else:
            mixed, j = mixed + second[j], j + 1
    if rng.random() < 0.4:
        mixed = text("abc", len(mixed), len(mixed))(rng)
    return first, second, mixed


path_parts = joined(choice("a", "b", "..", ".", "", "c.txt"), 1, 5, "/")
folder = one_of(path_parts, then(path_parts, lambda p: "/" + p))
absolute = mostly(then(joined(choice("a", "b", "c", ".."), 0, 4, "/"), lambda p: "/" + p), const("a/b"), 0.08)
file_name = choice("a.txt", "/x/y.tar.gz", ".hidden", "dir.d/file", "b", "/a/.rc", "x/.y.z", "noext.", "a.b/c.d", "..")
match = pair(choice("A", "B"), choice("C", "D", "E"), integer(0, 3), integer(0, 3))
matches = list_of(
    mostly(match, one_of(pair(choice("C", "D"), choice("A", "E"), small, small), const(("A", "A", 1, 0))), 0.2), 0, 4
)


def bowling_rolls(rng: np.random.Generator) -> list[int]:
    """The rolls of a game, mostly complete, with many strikes and spares."""
    rolls: list[int] = []
    for frame in range(10):
        kind = float(rng.random())
        first = 10 if kind < 0.25 else int(rng.integers(0, 10))
        second = 10 - first if kind < 0.5 else int(rng.integers(0, 11 - first))
        rolls += [first] if first == 10 and frame < 9 else [first, second]
    if rolls[-2] + rolls[-1] >= 10:
        rolls.append(int(rng.integers(0, 11)))
    if rng.random() < 0.3:
        rolls = rolls[: int(rng.integers(0, len(rolls)))]
    if rolls and rng.random() < 0.05:
        rolls[0] = 11
    return rolls


# Programs of several files -------------------------------------------------------------------------------------------

formula_numbers = choice("1", "2", "3", "12", "x", "y", "rate")
formula_text = spoiled(then(arithmetic(formula_numbers, "+-**/", 2, "-"), "".join), "+*( )7$", 0.15)
variables = const({"x": 6, "y": -4, "rate": 2})


def _tokens(parts: list[str]) -> list[tuple[str, Any]]:
    """The calculator's tokens of the parts of an expression."""
    kinds = {True: "number", False: "symbol"}
    return [("name", p) if p.isalpha() else (kinds[p.isdigit()], int(p) if p.isdigit() else p) for p in parts]


tokens = then(arithmetic(formula_numbers, "+-*/", 2), _tokens)
token_args = mostly(args(tokens, const(0)), args(then(tokens, lambda t: t[:-1]), const(0)), 0.1)
calc_leaf = choice(1, 2, 3, 12, "x", "y")
calc_node = mostly(pair(choice("+", "-", "*", "/"), calc_leaf, calc_leaf), pair(const("neg"), calc_leaf), 0.2)
calc_tree = one_of(
    calc_leaf, calc_node, pair(choice("+", "-", "*"), calc_node, calc_node), pair(const("-"), calc_leaf, calc_node)
)
voucher = mostly(choice("P15", "F500", "P100", "F90000", "P0", "P33"), choice("X5", "P", "P101", "F5a", ""), 0.08)
article = pair(
    choice("pen", "ink", "pad"), one_of(integer(1, 6), choice(9, 10, 11, 49, 50, 51)), choice(150, 199, 999, 45)
)
shop_basket = list_of(article, 0, 3)
robot_program = spoiled(text(["F", "L", "R", "3F", "2(FL)", "2(F2(RF))", "2R", "FF", "(FL)"], 0, 5), "FLR()2x", 0.12)
single_commands = text("FLRLLRR", 0, 8)
direction = mostly(choice(*"NESW"), const("X"), 0.05)
loan = pair(choice("book", "film", "book", "film"), integer(0, 30), mostly(integer(0, 2), const(3), 0.04))
closed_days = distinct(integer(10, 60), 0, 4)
returned_loan = then(pair(loan, integer(5, 90)), lambda drawn: (*drawn[0], drawn[1]))
percents = one_of(integer(0, 100), choice(59, 60, 69, 70, 79, 80, 89, 90, 100, 0))
points_list = list_of(percents, 0, 5)
students = dict_of(names, list_of(percents, 0, 4), 0, 4)
corpus_text = joined(choice("red", "Red", "fox", "sea", "the", "x2", "fox-red", "the,sea", "!"), 0, 5)
corpus = list_of(corpus_text, 0, 4)
search_terms = joined(choice("red", "fox", "sea", "the", "the sea", "Fox"), 0, 2)
vm_branch = then(
    pair(integer(0, 2), choice("push 2; print", "push 5; print", "push 7; dup; mul; print"), choice("end", "z")),
    lambda drawn: f"push 8; push {drawn[0]}; jzero {drawn[2]}; {drawn[1]}; {drawn[2]}: ; print",
)
vm_loop = then(
    pair(integer(1, 4), choice("top", "a")),
    lambda drawn: f"push {drawn[0]}; {drawn[1]}:; dup; print; push 1; sub; dup; jzero b; jump {drawn[1]}; b:",
)
vm_line = mostly(
    then(
        list_of(
            choice(
                "push 2",
                "push 3",
                "push -1",
                "dup",
                "add",
                "push 6",
                "sub",
                "swap",
                "mul",
                "print",
                "dup # x",
                "push 7",
            ),
            1,
            5,
        ),
        lambda drawn: "; ".join(["push 4", "push 5", *drawn, "print"]),
    ),
    choice(
        "push 3; top: dup; print; push 1; sub; dup; jzero end; jump top; end:",
        "jump end; push 1; print; end:",
        "push 0; jzero a; push 9; print; a: ; push 1; print",
        "loop:; jump loop",
        "push",
        "fly 1",
        "jump no",
        "a:; a:",
        "",
        "push 1; jzero z; push 7; print; z:",
    ),
    0.4,
)
vm_source = one_of(vm_line, vm_line, vm_branch, vm_loop)
slot = then(interval(16, 40, 8), lambda s: (s[0] * 30, s[1] * 30))
slot_words = mostly(
    then(slot, lambda s: f"{s[0] // 60}:{s[0] % 60:02d}-{s[1] // 60}:{s[1] % 60:02d}"),
    choice("9:00-9:00", "11:00-10:00", "9:75-10:00", "9-10", "noon", "23:00-24:00", "0:05-0:10"),
    0.12,
)


def bookings(rng: np.random.Generator) -> dict[str, list[tuple[int, int]]]:
    """Rooms with few bookings that do not clash."""
    result = {}
    for room in ("hall", "lab"):
        marks = sorted({int(m) * 30 for m in rng.integers(16, 40, 4)})
        pairs = list(zip(marks[::2], marks[1::2], strict=False))
        result[room] = pairs[: int(rng.integers(0, 3))]
    return result


room = mostly(choice("hall", "lab"), const("attic"), 0.06)
logic_parts = arithmetic(choice(*"abc", "!a", "!b"), "&|", 2, "!")
logic_text = spoiled(
    one_of(then(logic_parts, "".join), then(logic_parts, " ".join), choice("a|!a", "a&!a", "!!b", "!(a|b)")),
    "ab!&|()",
    0.1,
)
logic_leaf = one_of(choice(*"abc"), pair(const("!"), choice(*"abc")))
logic_node = pair(choice("&", "|"), logic_leaf, logic_leaf)
logic_tree = one_of(
    logic_leaf, logic_node, pair(const("!"), logic_node), pair(choice("&", "|"), logic_node, logic_leaf)
)
cell = choice(None, 1, 25, -3, 1.5, 10.25, "x", "name", "", 0, "long word", True)
table_rows = list_of(list_of(cell, 0, 4), 0, 4)
sortable = list_of(pair(choice("a", "b", "c", "d"), mostly(integer(0, 5), const(None), 0.25)), 0, 5)
shift = pair(integer(300, 720), integer(700, 1300))
round_shift = choice((480, 840), (480, 839), (480, 1020), (480, 1019), (1320, 360), (540, 543), (480, 1200), (0, 0))
shifts = list_of(one_of(shift, round_shift), 0, 5)
level_tree = dict_of(
    choice("log", "db", "ui"),
    one_of(choice(1, "x", None, False), dict_of(choice("level", "file"), choice(1, 2, "f", None), 0, 2)),
    0,
    3,
)
setting_path = choice("log", "log.level", "db.file", "ui.level", "db", "log.file.size")
override = mostly(
    choice("log.level=3", "db=on", "ui.dark=true", "log=x=y", "a.b.c=0", "db.file=false", "x="),
    choice("oops", "=1", "log"),
    0.08,
)
bus_line = pair(
    choice("1", "2", "N"),
    integer(0, 30),
    choice(5, 10, 15),
    then(
        pair(subset("ABCD", 2, 4), list_of(integer(1, 6), 4, 4)),
        lambda drawn: [(stop, sum(drawn[1][:i])) for i, stop in enumerate(drawn[0])],
    ),
)
bus_lines = list_of(bus_line, 1, 2)
two_lines = then(
    pair(bus_line, integer(0, 20), choice(7, 12)), lambda d: [d[0], ("T", d[1], d[2], [("B", 0), ("C", 3), ("D", 5)])]
)
stop = choice(*"ABCD")
served_args = bind(
    bus_line, lambda line: args(const(line), choice(*[name for name, _ in line[3]], "A"), integer(0, 60))
)


def _ride_args(line: Any) -> Draw:
    stops = [name for name, _ in line[3]]
    return args(const(line), choice(*stops[:-1]), choice(*stops[1:], stops[-1]), integer(0, 60))


served_args_two = then(served_args, lambda drawn: drawn[:2])
shift_ends = (
    choice(480, 540, 600, 1320),
    one_of(integer(0, 1439), choice(480, 539, 839, 840, 841, 899, 900, 960, 1019, 1020, 1079, 1080, 240, 420)),
)
year = one_of(integer(1, 2100), choice(1900, 2000, 2004, 2023, 2024))
date_args = args(
    year, mostly(integer(1, 12), choice(1, 2, 3, 12), 0.4), mostly(integer(1, 28), choice(29, 30, 31, 0), 0.25)
)
point_pair = mostly(interval(0, 15), then(integer(0, 15), lambda at: (at, at)), 0.2)
grams = one_of(integer(50, 4000), choice(999, 1000, 1001, 1500, 1501, 2000))


def _numeral(number: int) -> str:
    """The Roman numeral of a number below 4000."""
    ones = ["", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX"]
    tens = [one.translate(str.maketrans("IVX", "XLC")) for one in ones]
    hundreds = [one.translate(str.maketrans("IVX", "CDM")) for one in ones]
    return "M" * (number // 1000) + hundreds[number // 100 % 10] + tens[number // 10 % 10] + ones[number % 10]


numeral = then(one_of(integer(1, 60), integer(1, 2500)), _numeral)


INPUTS: dict[str, dict[str, Draw]] = {
    "backpack": {
        "best_value": args(pack_items, capacity),
        "best_choice": args(pack_items, capacity),
        "greedy_choice": args(pack_items, capacity),
    },
    "bank": {
        "deposit": args(dict_of(names, integer(0, 500), 0, 3), names, mostly(integer(1, 90), integer(-1, 0))),
        "withdraw": args(rich, mostly(choice("ann", "bob"), names, 0.15), mostly(integer(1, 45), integer(-1, 0), 0.05)),
        "transfer": args(
            rich, mostly(choice("ann", "bob"), names, 0.1), mostly(choice("ann", "bob"), names, 0.1), integer(1, 40)
        ),
        "transfer_all": args(rich, list_of(pair(choice("ann", "bob"), names, integer(1, 30)), 0, 2)),
        "overdrawn": args(list_of(pair(names, integer(-9, 12)), 0, 6)),
    },
    "bar_charts": {
        "bin_counts": args(list_of(integer(-3, 20), 0, 8), integer(-2, 5), count_or_negative, count_or_negative),
        "horizontal": args(dict_of(fruit, mostly(integer(0, 12), const(0)), 0, 4), integer(1, 12)),
        "vertical": args(list_of(integer(0, 4), 0, 6)),
        "sparkline": args(one_of(ints, list_of(const(4), 0, 3))),
    },
    "binary_search": {
        "lower_bound": args(sorted_ints, integer(-1, 16)),
        "index_of": bind(
            sorted_ints, lambda v: args(const(v), mostly(choice(*v) if v else const(3), integer(-1, 16), 0.25))
        ),
        "count_between": args(sorted_ints, integer(-1, 10), integer(3, 16)),
        "closest": args(sorted_ints, integer(-2, 18)),
    },
    "bit_tricks": {
        "popcount": args(mostly(bits, const(-3), 0.08)),
        "reverse_bits": mostly(
            bind(integer(1, 10), lambda width: args(integer(0, 2**width - 1), const(width))),
            args(bits, integer(0, 4)),
            0.2,
        ),
        "gray_code": args(bits),
        "from_gray": args(bits),
        "set_positions": args(bits),
        "next_power_of_two": args(one_of(bits, integer(-2, 5))),
    },
    "book_loans": {
        "loan_days.due_day": args(
            integer(0, 60), mostly(choice("book", "film"), const("map"), 0.08), mostly(integer(0, 2), const(3), 0.08)
        ),
        "loan_days.days_late": args(integer(0, 30), integer(0, 50), distinct(integer(0, 50), 0, 5)),
        "fines.fine": args(one_of(integer(0, 12), integer(0, 40)), flag()),
        "fines.total_fines": args(list_of(returned_loan, 0, 3), closed_days, flag()),
        "fines.may_borrow": args(
            mostly(list_of(loan, 0, 3), list_of(pair(const("film"), integer(20, 30), integer(0, 1)), 4, 5), 0.3),
            integer(10, 40),
            one_of(integer(0, 400), choice(499, 500, 501)),
        ),
        "fines.reminders": args(list_of(pair(const("film"), integer(5, 12), integer(0, 1)), 0, 5), integer(10, 20)),
    },
    "bowling": {
        "split_frames": args(bowling_rolls),
        "score": args(bowling_rolls),
        "is_finished": args(bowling_rolls),
        "marks": args(bowling_rolls),
    },
    "brackets": {
        "first_error": args(spoiled(text(["(a)", "[]", "{", "}", "([x])", "("], 0, 4), "()[]{}x")),
        "is_balanced": args(spoiled(text(["(a)", "[]", "{}", "([x])", "((", "))"], 0, 4), "()[]{}x")),
        "max_depth": args(spoiled(text(["(a)", "[]", "{()}", "([{x}])", "b"], 0, 4), "()[]{}x", 0.2)),
        "closers_needed": args(spoiled(text(["(", "[", "{", "(a)", "[b]", "x"], 0, 5), ")]}", 0.2)),
    },
    "bus_network": {
        "timetable.stop_offset": served_args_two,
        "timetable.next_bus": served_args,
        "timetable.board": args(bus_lines, stop, integer(0, 60)),
        "trips.ride": bind(bus_line, _ride_args),
        "trips.direct_trip": args(two_lines, stop, stop, integer(0, 40)),
        "trips.transfer_trip": args(two_lines, choice(*"AB"), choice(*"CDA"), integer(0, 40), integer(0, 5)),
    },
    "calculator": {
        "lexing.read_number": args(
            then(pair(text("0123456789", 1, 4), text("a+ 5", 0, 3)), lambda d: d[0] + d[1]), const(0)
        ),
        "lexing.tokenize": args(formula_text),
        "grammar.parse_sum": token_args,
        "grammar.parse_product": token_args,
        "grammar.parse_factor": token_args,
        "grammar.parse": args(formula_text),
        "evaluation.evaluate_tree": args(calc_tree, variables),
        "evaluation.calculate": args(formula_text, variables),
        "evaluation.names_used": args(calc_tree),
    },
    "change_making": {
        "check_coins": args(list_of(mostly(integer(1, 20), const(0), 0.05), 0, 6)),
        "fewest_coins": args(coins, integer(0, 30)),
        "count_ways": args(coins, integer(0, 20)),
        "greedy_change": args(mostly(then(coins, lambda c: [*c, 1]), coins, 0.3), integer(0, 99)),
    },
    "check_digits": {
        "clean": args(luhn_number),
        "luhn_sum": args(digits),
        "luhn_valid": args(luhn_number),
        "luhn_check_digit": args(one_of(digits, luhn_number)),
        "isbn10_valid": args(isbn),
        "ean13_check_digit": args(ean),
    },
    "chess_moves": {
        "to_square": args(square),
        "knight_targets": args(square),
        "knight_distance": args(square, square),
        "queen_attacks": args(square, square),
        "square_color": args(square),
    },
    "ciphers": {
        "shift_letter": args(choice(*"abmyzABYZ!1"), integer(-30, 30)),
        "caesar": args(cipher_text, integer(-30, 30)),
        "vigenere": args(cipher_text, mostly(word(1, 4), choice("", "Key", "a1"), 0.1), flag()),
        "atbash": args(cipher_text),
    },
    "clock_times": {
        "to_minutes": args(clock),
        "to_clock": args(integer(-1500, 3000)),
        "add_minutes": args(clock, integer(-1500, 1500)),
        "minutes_between": args(clock, clock),
        "twelve_hours": args(clock),
        "is_open": args(clock, clock, clock),
    },
    "csv_lines": {
        "parse_line": args(
            spoiled(joined(choice("a", "", "12", '"x,y"', '"say ""hi"""', '""', "b c"), 0, 5, ","), '",', 0.2)
        ),
        "read_quoted": args(then(text(["a", "b c", ",", '""', '"', "z"], 0, 5), lambda t: '"' + t + '"'), const(0)),
        "format_line": args(list_of(csv_field, 1, 5)),
    },
    "data_path": {
        "split_path": args(
            spoiled(
                one_of(
                    choice("", "[3]", "users[1].name"),
                    joined(choice("a", "b[2]", "x[0][12]", "name", "c[7]"), 1, 3, "."),
                ),
                "[].x",
                0.15,
            )
        ),
        "lookup": data_args,
        "lookup_all": then(
            pair(data_args, list_of(choice("a", "a.c", "a.b[1]", "x[0][5]", "users[0].age", "zz"), 0, 2)),
            lambda drawn: (
                drawn[0][0],
                [drawn[0][1].replace("[x]", ""), *(drawn[1] if "a" in drawn[0][0] else [])],
                None,
            ),
        ),
        "leaf_paths": then(data_args, lambda drawn: (drawn[0],) if len(drawn[1]) % 2 else (drawn[0], "p")),
    },
    "dates": {
        "is_leap": args(one_of(integer(1, 2400), choice(1900, 2000, 2004, 2023, 2100, 4, 400, 100))),
        "days_in_month": args(year, mostly(integer(1, 12), choice(0, 13), 0.1)),
        "day_of_year": date_args,
        "day_number": date_args,
        "weekday": date_args,
        "add_days": bind(date_args, lambda d: args(*map(const, d), mostly(integer(0, 500), const(-1), 0.06))),
    },
    "dict_changes": {
        "diff": args(flat_dict, flat_dict),
        "apply": args(mostly(const({"a": 1, "b": "x"}), flat_dict, 0.3), mostly(list_of(change, 0, 1), changes, 0.4)),
        "conflicts": args(any_changes, any_changes),
    },
    "durations": {
        "parse_duration": args(duration),
        "format_duration": args(mostly(seconds, const(-5), 0.05)),
        "rounded": args(seconds),
        "total_duration": args(list_of(mostly(choice("1h30m", "45m", "2d", "50s", "0s"), duration, 0.2), 0, 4)),
    },
    "edit_distance": {
        "distance": args(short_word, short_word),
        "mismatches": mostly(
            bind(integer(0, 6), lambda size: args(word(size, size, "abn"), word(size, size, "abn"))),
            args(short_word, short_word),
            0.2,
        ),
        "closest_words": args(short_word, list_of(word(1, 5, "abcn"), 0, 5), integer(0, 4)),
        "common_prefix": one_of(
            args(short_word, short_word),
            then(pair(short_word, short_word, short_word), lambda w: (w[0] + w[1], w[0] + w[2])),
        ),
    },
    "elections": {
        "first_choices": args(ballots, subset(["ann", "bob", "cy"], 0, 2)),
        "plurality": args(ballots),
        "borda": args(ballots),
        "instant_runoff": args(ballots),
    },
    "elevator": {
        "serve_in_order": args(small, list_of(small, 0, 7)),
        "sweep": args(small, list_of(small, 0, 8), flag()),
        "nearest_first": args(small, list_of(small, 0, 7)),
        "loads": args(list_of(mostly(interval(0, 4, 3), const((2, 1)), 0.05), 0, 5), mostly(const(8), integer(4, 6))),
    },
    "exact_fractions": {
        "reduce": args(integer(-36, 36), integer(-12, 12)),
        "add_fractions": args(fraction, fraction),
        "divide_fractions": args(fraction, fraction),
        "egyptian": mostly(
            bind(integer(2, 12), lambda n: args(integer(0, n - 1), const(n))), args(integer(3, 6), integer(2, 4)), 0.1
        ),
        "decimal_text": args(integer(0, 40), integer(1, 24)),
    },
    "file_paths": {
        "normalize": args(folder),
        "join_paths": args(folder, folder),
        "relative_to": args(absolute, absolute),
        "split_extension": args(one_of(file_name, folder)),
    },
    "flood_fill": {
        "region": cell_list_args,
        "paint": then(cell_list_args, lambda drawn: (*drawn, "b" if drawn[1] % 2 else "z")),
        "count_regions": args(picture, choice(*"abc")),
        "perimeter": args(picture, choice(*"aab")),
    },
    "grade_book": {
        "scores.drop_lowest": args(points_list, mostly(integer(0, 3), const(-1), 0.06)),
        "scores.weighted_score": args(
            dict_of(choice("test", "quiz"), percents, 0, 3),
            mostly(
                then(pair(integer(0, 4), integer(1, 4)), lambda w: {"test": w[0], "quiz": w[1]}),
                choice({"test": 1}, {}, {"test": 0}, {"test": 3, "quiz": 1, "oral": 2}),
            ),
        ),
        "scores.grade": args(mostly(percents, choice(-1, 101), 0.06)),
        "reports.average": args(points_list),
        "reports.report": args(students),
        "reports.distribution": args(students),
        "reports.improved": args(students),
    },
    "graph_paths": {
        "hop_counts": args(graph, mostly(const("a"), letter)),
        "shortest_path": args(graph, mostly(const("a"), letter), letter),
        "reversed_graph": args(graph),
    },
    "hex_colors": {
        "parse_color": args(color_text),
        "format_color": args(wide_color),
        "mix": args(color, color, one_of(integer(0, 100), choice(0, 50, 100))),
        "brightness": args(color),
        "text_color": args(one_of(color, then(integer(126, 130), lambda grey: (grey, grey, grey)))),
    },
    "ini_text": {
        "parse_ini": args(joined(ini_line, 0, 6, "\n")),
        "get_flag": mostly(
            then(
                pair(
                    choice("Yes", "no", "ON", "off", "True", "false", "1", "0", "yes", "FALSE"),
                    choice("main", "log", ""),
                    choice("a", "flag", "debug"),
                ),
                lambda drawn: ({drawn[1]: {drawn[2]: drawn[0], "x": "no"}}, drawn[1], drawn[2]),
            ),
            args(config, choice("main", "log"), choice("a", "flag")),
            0.2,
        ),
        "to_ini": args(config),
    },
    "intervals": {
        "merge": args(segments),
        "gaps": args(segments),
        "covered_length": args(segments),
        "intersection": args(point_pair, point_pair),
    },
    "inventory": {
        "receive": args(dict_of(fruit, small, 0, 3), list_of(pair(fruit, mostly(small, const(-1), 0.05)), 0, 3)),
        "ship": args(
            then(dict_of(fruit, integer(2, 9), 0, 3), lambda d: {"fig": 5, "kiwi": 3, **d}),
            dict_of(mostly(choice("fig", "kiwi"), fruit, 0.2), integer(0, 5), 0, 2),
        ),
        "to_reorder": args(dict_of(fruit, integer(0, 12), 0, 4), integer(0, 15), mostly(integer(1, 6), const(0), 0.06)),
    },
    "layered_config": {
        "settings.get_setting": mostly(
            args(level_tree, setting_path), args(level_tree, setting_path, choice(7, "no")), 0.4
        ),
        "settings.set_setting": args(level_tree, setting_path, choice(1, "x", False)),
        "merging.merge_two": args(level_tree, level_tree),
        "merging.merge_layers": args(list_of(level_tree, 0, 3)),
        "merging.apply_overrides": args(level_tree, list_of(override, 0, 3)),
        "merging.origin": args(
            then(pair(level_tree, level_tree), lambda d: [{"log": {"level": 2}, "db": 0}, *d]),
            choice("log", "log.level", "db", "ui"),
        ),
    },
    "league_table": {
        "match_points": args(integer(0, 4), integer(0, 4)),
        "totals": args(matches),
        "standings": args(matches),
        "unbeaten": args(matches),
        "longest_streak": args(matches, choice("A", "B", "C")),
    },
    "life": {
        "count_neighbours": bind(
            rows_of("#.", 1, 4, 5),
            lambda rows: args(const(rows), integer(0, len(rows) - 1), integer(0, len(rows[0]) - 1)),
        ),
        "step": args(rows_of("#..", 1, 4, 6)),
        "generations_until_stable": args(rows_of("#...", 1, 4, 5), integer(2, 6)),
        "population": args(mostly(rows_of("#.", 1, 4, 6), rows_of("#.x", 1, 2, 4), 0.2)),
    },
    "lru_pages": {
        "simulate": args(letters, mostly(integer(1, 4), const(0), 0.06)),
        "cache_after": args(letters, integer(1, 4)),
        "evictions": args(letters, integer(1, 3)),
    },
    "markup_text": {
        "strip_links": args(spoiled(text(["[a](b)", "x ", "[long one](http://y)", "(z)", "["], 0, 4), "[]()", 0.3)),
        "plain_line": args(markup_line),
        "headings": args(markup_text),
        "outline": args(mostly(good_outline, one_of(outline_text, markup_text), 0.2)),
    },
    "matrices": {
        "shape": args(mostly(matrix, ragged)),
        "transpose": args(mostly(matrix, ragged, 0.08)),
        "multiply": bind(
            pair(integer(1, 3), integer(1, 3)),
            lambda d: args(
                grid(integer(-4, 5), integer(1, 2), const(d[0])),
                grid(integer(-4, 5), mostly(const(d[0]), integer(1, 3), 0.15), const(d[1])),
            ),
        ),
        "determinant": args(
            mostly(bind(integer(0, 4), lambda n: grid(integer(-4, 5), const(n), const(n))), one_of(matrix, ragged), 0.1)
        ),
    },
    "meetings": {
        "overlaps": args(one_of(hours, list_of(interval(6, 18, 3), 0, 3))),
        "most_meetings": args(hours),
        "rooms_needed": args(hours),
        "free_slot": args(hours, mostly(integer(1, 4), const(0), 0.06), integer(6, 10), integer(14, 22)),
    },
    "merge_queues": {
        "merge_sorted": args(sorted_list(small, 0, 5), sorted_list(small, 0, 5)),
        "merge_by_priority": args(queues),
        "round_robin": args(list_of(list_of(small, 0, 4), 0, 4), mostly(integer(1, 3), const(0), 0.08)),
    },
    "money": {
        "parse_amount": args(amount_text),
        "format_amount": args(cents),
        "divide_rounded": args(integer(-40, 60), mostly(integer(1, 8), const(0), 0.06)),
        "split_amount": args(integer(0, 300), mostly(list_of(integer(0, 5), 1, 4), const([0]), 0.06)),
    },
    "moving_windows": {
        "moving_average": args(halves, mostly(integer(1, 4), const(0), 0.08)),
        "smooth": args(halves, mostly(choice(0.5, 0.25, 1.0, 0.75), choice(0.0, 1.5), 0.1)),
        "window_maxima": args(ints, mostly(integer(1, 4), const(0), 0.08)),
        "peaks": args(list_of(integer(0, 4), 0, 9)),
        "best_sum": args(ints),
    },
    "name_styles": {
        "split_name": args(name_text),
        "to_snake": args(name_text),
        "to_camel": args(name_text),
        "to_title": args(name_text),
        "unique_name": args(choice("x", "y"), distinct(choice("x", "x2", "x3", "y", "y2", "y3", "z"), 0, 6)),
    },
    "net_addresses": {
        "to_number": args(address),
        "to_address": args(one_of(integer(0, 2**32 - 1), choice(0, 255, 256, 65536, 2**24, 2**32 - 1))),
        "bounds": args(network),
        "is_inside": args(address, network),
        "best_route": args(address, routes),
        "valid_addresses": args(list_of(one_of(address, choice("1.2.3.256", "a.b", "9.9.9.9")), 0, 4)),
    },
    "number_bases": {
        "to_base": args(one_of(integer(-40, 300), choice(0, 35, 36, 255, 1000)), base),
        "from_base": args(digit_text, mostly(base, choice(10, 16, 36), 0.6)),
        "convert": args(digit_text, choice(16, 36, 36), base),
        "valid_numbers": args(list_of(digit_text, 0, 4), choice(2, 3, 10, 16)),
        "digit_sum": args(integer(-500, 5000), mostly(integer(2, 16), const(1), 0.05)),
    },
    "page_ranges": {
        "parse_pages": args(pages_text),
        "format_pages": args(list_of(integer(1, 12), 0, 9)),
        "missing_pages": args(distinct(integer(1, 12), 0, 9), integer(0, 12)),
        "booklet_sheets": args(integer(0, 14)),
    },
    "partitions": {
        "set_partitions": args(distinct(small, 0, 4)),
        "can_halve": args(positives),
        "number_partitions": args(integer(0, 10), integer(0, 8)),
        "chunks": args(list_of(small, 0, 9), mostly(integer(1, 5), const(0), 0.08)),
    },
    "payroll": {
        "work_hours.worked_minutes": args(*shift_ends),
        "work_hours.round_minutes": args(integer(0, 500), mostly(choice(1, 5, 10, 15), const(0), 0.08)),
        "work_hours.split_overtime": args(shifts, integer(0, 2400)),
        "wages.gross_pay": args(shifts, integer(0, 1500), mostly(integer(1000, 3000), const(-1), 0.06)),
        "wages.deductions": args(integer(0, 200000), integer(0, 3)),
        "wages.net_pay": args(integer(10000, 200000), integer(0, 3), list_of(integer(0, 20000), 0, 3)),
    },
    "permutations": {
        "next_permutation": args(
            one_of(permuted(0, 5), sorted_list(integer(0, 3), 0, 4), list_of(integer(0, 3), 2, 5))
        ),
        "inverse": args(mostly(permuted(0, 6), list_of(integer(0, 3), 1, 4), 0.1)),
        "cycles": args(permuted(0, 7)),
        "inversions": args(one_of(permuted(0, 6), list_of(integer(0, 3), 0, 6))),
        "rank": args(permuted(0, 6)),
    },
    "poker": {
        "card_values": args(poker_hand),
        "is_straight": args(poker_hand),
        "category": args(poker_hand),
        "describe": args(mostly(poker_hand, const(["2C", "3D"]), 0.08)),
        "better_hand": args(poker_hand, poker_hand),
    },
    "polynomials": {
        "trim": args(list_of(choice(0, 0, 1, -2, 5), 0, 6)),
        "add": args(list_of(integer(-3, 3), 0, 5), list_of(integer(-3, 3), 0, 5)),
        "product": args(list_of(integer(-3, 3), 0, 4), list_of(integer(-3, 3), 0, 4)),
        "derivative": args(list_of(integer(-3, 3), 0, 6)),
        "value_at": args(list_of(integer(-3, 3), 0, 5), integer(-3, 4)),
        "to_text": args(list_of(choice(-3, -1, 0, 0, 1, 2, 7), 0, 5)),
    },
    "postfix": {
        "apply_operator": args(mostly(choice(*"+-*/"), const("^"), 0.08), integer(-9, 12), integer(-4, 9)),
        "evaluate_postfix": args(spoiled(postfix_text, "+-2 x", 0.12)),
        "to_postfix": args(spoiled(infix, "()", 0.1)),
    },
    "prefix_tree": {
        "build_tree": args(short_words),
        "words_in": one_of(args(then(short_words, _tree)), args(then(short_words, _tree), choice("x", "pre"))),
        "complete": args(then(short_words, _tree), choice("", "c", "ca", "cat", "d", "do", "a", "x")),
        "shortest_prefix": bind(
            short_words,
            lambda drawn: args(
                const(_tree(drawn)), mostly(choice(*drawn) if drawn else const("a"), const("zoo"), 0.08)
            ),
        ),
    },
    "prime_numbers": {
        "primes_up_to": args(one_of(integer(0, 10), integer(0, 60))),
        "factorize": args(mostly(one_of(integer(1, 30), integer(1, 1000)), integer(-1, 0), 0.06)),
        "divisor_count": args(mostly(one_of(integer(1, 30), integer(1, 1000)), integer(-1, 0), 0.06)),
        "greatest_common_divisor": one_of(
            args(integer(-60, 60), integer(-60, 60)),
            then(pair(integer(1, 9), integer(0, 9), integer(0, 9)), lambda d: (d[0] * d[1], d[0] * d[2])),
        ),
    },
    "query_text": {
        "decode_percent": args(percent_text),
        "encode_percent": args(mostly(text(["a", "Z", " ", "&", "ü", "~", "/", "9"], 0, 6), choice("€", "a→b"), 0.1)),
        "parse_query": args(mostly(query, then(query, lambda t: "?" + t))),
        "build_query": args(query_dict),
    },
    "rate_limits": {
        "sliding_window": args(times, mostly(integer(1, 3), const(0), 0.05), mostly(integer(1, 8), const(0), 0.05)),
        "token_bucket": args(times, integer(1, 4), integer(0, 2)),
        "next_allowed": args(times, mostly(integer(1, 3), const(0), 0.05), integer(1, 10), integer(0, 40)),
    },
    "rectangles": {
        "area": args(mostly(box, choice((1, 1, 1, 4), (3, 2, 5, 2), (5, 5, 2, 9)), 0.1)),
        "overlap": args(box, box),
        "bounding_box": args(list_of(box, 0, 4)),
        "union_area": args(box, box),
        "holds_point": bind(box, lambda b: args(const(b), integer(b[0] - 1, b[2] + 1), integer(b[1] - 1, b[3] + 1))),
    },
    "retry_delays": {
        "exponential_delays": args(
            integer(50, 200), integer(1, 3), integer(100, 1500), mostly(integer(1, 6), const(0), 0.06)
        ),
        "attempt_times": args(list_of(integer(1, 50), 0, 5), integer(1, 20)),
        "attempts_within": args(list_of(integer(1, 30), 0, 5), integer(1, 20), integer(0, 150)),
        "first_success": args(
            mostly(
                then(list_of(choice("busy", "timeout", "down"), 0, 4), lambda d: [*d, "ok"]),
                list_of(choice("busy", "timeout", "ok", "fatal"), 0, 3),
                0.2,
            ),
            mostly(const(["busy", "timeout", "down"]), choice([], ["busy"]), 0.12),
        ),
    },
    "road_costs": {
        "neighbours": args(roads),
        "costs_from": args(rooted_roads, mostly(const("a"), letter, 0.4)),
        "farthest": args(rooted_roads, mostly(const("a"), letter, 0.4)),
    },
    "robot": {
        "commands.expand": args(robot_program),
        "commands.simplify": args(single_commands),
        "walking.turn": args(direction, choice("L", "R")),
        "walking.walk": args(robot_program, integer(-5, 5), integer(-5, 5), direction),
        "walking.visited": args(robot_program, list_of(pair(integer(-1, 2), integer(-1, 3)), 0, 4)),
        "walking.returns_home": args(one_of(robot_program, choice("4(FL)", "2(F2R)", "FRFRFRF", "4(2FR)"))),
    },
    "roman": {
        "to_roman": args(mostly(one_of(integer(1, 60), integer(1, 3999)), choice(0, -4, 4000, 3999), 0.15)),
        "from_roman": args(spoiled(numeral, "IVXLCDM", 0.2)),
        "add_roman": args(numeral, mostly(numeral, choice("IIII", "", "MMMCMXCIX"), 0.15)),
    },
    "room_booking": {
        "time_slots.parse_slot": args(slot_words),
        "time_slots.clash": args(slot, slot),
        "time_slots.slot_text": args(slot),
        "rooms.is_free": args(bookings, room, slot),
        "rooms.book_room": args(bookings, room, slot_words),
        "rooms.free_rooms": args(bookings, slot_words),
        "rooms.free_times": args(bookings, room, choice((480, 1200), (540, 1020), (600, 720))),
        "rooms.used_minutes": args(bookings),
    },
    "run_length": {
        "runs": args(text(["a", "b", "bb", "cccc", " "], 0, 6)),
        "encode": args(mostly(text(["a", "b", "bb", "cccc", " "], 0, 6), choice("a1", "22"), 0.1)),
        "decode": args(spoiled(text(["a", "2b", "4c", "12d", "3 "], 0, 5), "02z", 0.2)),
        "longest_run": args(text(["a", "b", "bb", "ccc", "aaa"], 0, 6)),
    },
    "seat_map": {
        "parse_seat": args(seat),
        "book": args(roomy, mostly(then(pair(integer(1, 2), choice(*"ABCa")), lambda s: f"{s[0]}{s[1]}"), seat)),
        "adjacent_seats": args(cinema, integer(1, 4)),
        "fullest_row": args(mostly(cinema, const([]), 0.06)),
    },
    "sessions": {
        "split_sessions": args(shuffled_times, mostly(integer(0, 9), const(-1), 0.06)),
        "session_spans": args(shuffled_times, integer(0, 9)),
        "busiest_window": args(shuffled_times, integer(1, 12)),
        "drop_bursts": args(shuffled_times, integer(0, 8)),
    },
    "shipping": {
        "billable_grams": args(integer(1, 3000), integer(0, 40), integer(1, 30), integer(1, 30)),
        "base_price": args(grams, mostly(choice("home", "near", "far"), const("moon"), 0.08)),
        "total_price": mostly(
            args(list_of(grams, 0, 4), choice("home", "near", "far"), flag()),
            args(list_of(grams, 0, 4), choice("home", "near", "moon")),
        ),
        "split_load": args(one_of(integer(0, 100), choice(0, 20, 40)), mostly(integer(10, 40), const(0), 0.08)),
    },
    "sparse_vectors": {
        "from_dense": args(list_of(choice(0, 0, 1, -2, 7), 0, 7)),
        "to_dense": args(sparse, mostly(const(9), integer(0, 8), 0.4)),
        "plus": mostly(args(sparse, sparse), args(sparse, sparse, choice(-1, 2, 0)), 0.5),
        "dot": args(sparse, sparse),
        "shift_indices": args(sparse, mostly(integer(0, 4), integer(-4, -1), 0.3)),
    },
    "spiral": {
        "spiral_order": args(grid(small, integer(0, 4), integer(1, 4))),
        "spiral_square": args(mostly(integer(0, 5), const(-1), 0.1)),
        "diagonals": args(grid(small, integer(0, 4), integer(1, 4))),
    },
    "stack_vm": {
        "assembly.statements": args(vm_source),
        "assembly.find_labels": args(vm_source),
        "assembly.assemble": args(vm_source),
        "machine.execute": args(
            choice("add", "sub", "mul", "dup", "swap"), mostly(list_of(signed, 2, 5), list_of(signed, 0, 1), 0.2)
        ),
        "machine.run": args(
            mostly(
                vm_source,
                choice("push 3; a:; dup; print; push 1; sub; dup; jzero b; jump a; b:", "push 6; push 7; mul; print"),
            ),
            choice(20, 50, 60),
        ),
        "machine.stack_change": args(vm_source),
    },
    "subsequences": {
        "is_subsequence": args(text("abc", 0, 4), text("abc", 0, 9)),
        "longest_common": args(abc, abc),
        "longest_rising": args(list_of(small, 0, 8)),
        "longest_palindrome": args(text("aabc", 0, 9)),
        "interleaves": mixed_args,
    },
    "summary_stats": {
        "mean": args(halves),
        "median": args(halves),
        "modes": args(list_of(integer(1, 4), 0, 8)),
        "variance": args(halves),
        "trimmed_mean": args(list_of(number(-5, 15), 1, 8), mostly(integer(0, 2), const(-1), 0.06)),
    },
    "task_order": {
        "all_tasks": args(needs),
        "order": args(needs),
        "levels": args(needs),
        "finish_times": args(needs, dict_of(choice(*"abcdef"), integer(0, 9), 0, 5)),
    },
    "taxes": {
        "check_brackets": args(mostly(brackets_table, odd_brackets, 0.4)),
        "tax_due": args(income, brackets_table),
        "marginal_percent": args(income, brackets_table),
        "joint_saving": args(income, income, brackets_table),
    },
    "templates": {
        "split_template": args(template),
        "placeholders": args(template),
        "fill": args(
            template, mostly(then(template_values, lambda d: {"name": "Bo", "city": "Ulm", **d}), template_values)
        ),
    },
    "text_search": {
        "indexing.terms": args(corpus_text),
        "indexing.build_index": args(corpus),
        "queries.find_all": args(corpus, search_terms),
        "queries.find_phrase": args(corpus, mostly(choice("fox", "the sea", "red fox", "fox red"), search_terms)),
        "queries.ranked": args(corpus, search_terms),
        "queries.snippet": args(
            then(pair(corpus_text, corpus_text), lambda d: d[0] + " fox " + d[1]),
            choice("fox", "Fox", "red", "fox"),
            integer(0, 3),
        ),
    },
    "text_stats": {
        "words": args(sentences),
        "word_counts": args(sentences),
        "top_words": args(sentences, integer(0, 4)),
        "sentence_lengths": args(sentences),
        "longest_word": args(sentences),
    },
    "text_tables": {
        "cells.cell_text": args(cell),
        "cells.align": args(
            word(0, 7), integer(0, 9), mostly(choice("left", "right", "center", "center"), const("up"), 0.06)
        ),
        "layout.column_widths": args(table_rows),
        "layout.render": args(table_rows, choice(" | ", " ", ",")),
        "layout.sort_rows": args(
            then(sortable, lambda rows: [list(row) for row in rows]), mostly(integer(0, 1), const(2), 0.06), flag()
        ),
        "layout.column_totals": args(table_rows),
    },
    "tictactoe": {
        "lines": args(board9),
        "winner": args(board9),
        "to_move": args(mostly(played, board9)),
        "winning_moves": args(one_of(played, board9), choice("X", "O")),
    },
    "trades": {
        "best_trade": args(prices),
        "total_gain": args(prices, integer(0, 3)),
        "largest_fall": args(mostly(prices, const([3, 0, 5]), 0.06)),
        "match_lots": args(mostly(trade_list, const([("swap", 1, 1)]), 0.04)),
    },
    "truth_tables": {
        "formulas.parse_formula": args(logic_text),
        "formulas.parse_level": args(
            spoiled(then(logic_parts, "".join), "a!&|()", 0.1), const(0), choice("|", "&", "|")
        ),
        "formulas.parse_operand": args(
            spoiled(then(logic_parts, lambda p: "!(" + "".join(p) + ")"), "a!&|()", 0.1), integer(0, 2)
        ),
        "truth.holds": args(logic_tree, subset("abc", 0, 3)),
        "truth.variables": args(logic_text),
        "truth.table": args(logic_text),
        "truth.classify": args(logic_text),
    },
    "union_groups": {
        "find_root": bind(
            integer(1, 7),
            lambda n: args(const([0, 0, 1, 1, 4, 4, 5][:n]), integer(0, n - 1)),
        ),
        "join_all": groups_args,
        "groups": groups_args,
        "redundant_pairs": groups_args,
    },
    "versions": {
        "parse_version": args(version),
        "compare": args(version, version),
        "newest": args(list_of(version, 0, 4)),
        "is_compatible": args(version, version),
        "split_valid": args(list_of(one_of(version, choice("1.x", "", "v2", "2.0")), 0, 4)),
    },
    "web_shop": {
        "discounts.quantity_percent": args(one_of(integer(0, 60), choice(9, 10, 49, 50))),
        "discounts.voucher_value": args(voucher, integer(0, 9000)),
        "basket.add_article": args(
            shop_basket, choice("pen", "ink"), mostly(integer(1, 5), integer(-1, 0), 0.08), choice(150, 199)
        ),
        "basket.line_total": args(one_of(integer(0, 12), integer(45, 60)), integer(1, 999)),
        "basket.subtotal": args(shop_basket),
        "checkout.delivery_fee": args(one_of(integer(0, 9000), choice(4999, 5000, 5001)), flag()),
        "checkout.amount_due": args(shop_basket, list_of(voucher, 0, 2), flag()),
        "checkout.receipt": args(shop_basket),
    },
    "wrapping": {
        "wrap": args(prose, mostly(integer(3, 16), integer(0, 2))),
        "justify": args(joined(choice("a", "the", "word", "sea"), 0, 5), integer(6, 24)),
        "truncate": args(prose, mostly(integer(3, 25), integer(0, 2), 0.08)),
    },
}
