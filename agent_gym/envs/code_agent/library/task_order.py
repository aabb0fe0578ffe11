"""Ordering tasks by their requirements: a dict from task to the list of tasks that must come before it."""


def all_tasks(needs: dict[str, list[str]]) -> list[str]:
    """Return every task named anywhere in needs, sorted, each once."""
    names = set(needs)
    for required in needs.values():
        names.update(required)
    return sorted(names)


def order(needs: dict[str, list[str]]) -> list[str]:
    """Return all tasks, each after what it needs; of those that are ready the alphabetically first comes next.

    Raises ValueError if the requirements form a cycle.
    """
    waiting = all_tasks(needs)
    done: list[str] = []
    while waiting:
        ready = [task for task in waiting if all(required in done for required in needs.get(task, []))]
        if not ready:
            raise ValueError("the requirements form a cycle")
        done.append(ready[0])
        waiting.remove(ready[0])
    return done


def levels(needs: dict[str, list[str]]) -> dict[str, int]:
    """Return the level of each task: 0 without requirements, else one above its highest requirement.

    Raises ValueError if the requirements form a cycle.
    """
    level: dict[str, int] = {}
    for task in order(needs):
        level[task] = max((level[required] + 1 for required in needs.get(task, [])), default=0)
    return level


def finish_times(needs: dict[str, list[str]], hours: dict[str, int]) -> dict[str, int]:
    """Return when each task ends if all start as early as possible; a task missing in hours takes 1 hour."""
    ends: dict[str, int] = {}
    for task in order(needs):
        start = max((ends[required] for required in needs.get(task, [])), default=0)
        ends[task] = start + hours.get(task, 1)
    return ends
