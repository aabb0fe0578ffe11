"""Standings of a league; a match is (home, away, home goals, away goals)."""


def match_points(scored: int, conceded: int) -> int:
    """Return 3 points for a win, 1 for a draw and 0 for a loss."""
    if scored > conceded:
        return 3
    return 1 if scored == conceded else 0


def totals(matches: list[tuple[str, str, int, int]]) -> dict[str, tuple[int, int, int]]:
    """Return team -> (points, goal difference, goals scored).

    Raises ValueError if a team plays itself or a number of goals is negative.
    """
    table: dict[str, tuple[int, int, int]] = {}
    for home, away, home_goals, away_goals in matches:
        if home == away or min(home_goals, away_goals) < 0:
            raise ValueError("impossible match")
        for team, scored, conceded in ((home, home_goals, away_goals), (away, away_goals, home_goals)):
            points, difference, goals = table.get(team, (0, 0, 0))
            points += match_points(scored, conceded)
            table[team] = (points, difference + scored - conceded, goals + scored)
    return table


def standings(matches: list[tuple[str, str, int, int]]) -> list[str]:
    """Return the teams by falling points, then goal difference, then goals scored, then by rising name."""
    table = totals(matches)
    return sorted(table, key=lambda team: ([-number for number in table[team]], team))


def unbeaten(matches: list[tuple[str, str, int, int]]) -> list[str]:
    """Return, sorted, the teams that lost no match."""
    beaten = set()
    for home, away, home_goals, away_goals in matches:
        if home_goals > away_goals:
            beaten.add(away)
        elif home_goals < away_goals:
            beaten.add(home)
    return sorted(set(totals(matches)) - beaten)


def longest_streak(matches: list[tuple[str, str, int, int]], team: str) -> int:
    """Return the greatest number of wins of the team in a row, matches of others not counting."""
    best = current = 0
    for home, away, home_goals, away_goals in matches:
        if team not in (home, away):
            continue
        won = home_goals > away_goals if team == home else away_goals > home_goals
        current = current + 1 if won else 0
        best = max(best, current)
    return best
