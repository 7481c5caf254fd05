"""Worked problems of school mathematics, generated: each states a question, shows the steps and ends with the answer."""

import math
import random
from collections.abc import Callable, Iterator

THINGS = ("apples", "pencils", "books", "tickets", "stones", "boxes", "coins", "letters", "lamps", "chairs", "boats", "berries")
PLACES = ("shop", "school", "library", "harbour", "market", "factory", "garden", "museum", "station", "farm")


def generate_problems(count: int, seed: int = 7) -> Iterator[str]:
    """`count` problems, always the same for a seed."""
    rng = random.Random(seed)  # noqa: S311 - text, not secrets
    kinds: tuple[Callable[[random.Random], str], ...] = (
        _shopping,
        _linear_equation,
        _percentage,
        _fraction_sum,
        _rectangle,
        _speed,
        _arithmetic_series,
        _greatest_divisor,
        _average,
        _pythagoras,
    )
    for _ in range(count):
        yield rng.choice(kinds)(rng)


def _worked(question: str, *steps: str, answer: object) -> str:
    lines = [f"Question: {question}", "Solution:", *steps, f"Answer: {answer}"]
    return "\n".join(lines)


def _shopping(rng: random.Random) -> str:
    thing, place = rng.choice(THINGS), rng.choice(PLACES)
    count, price, paid_extra = rng.randint(3, 24), rng.randint(2, 19), rng.randint(1, 40)
    total = count * price
    paid = total + paid_extra
    return _worked(
        f"At the {place} {thing} cost {price} euros each. Someone buys {count} {thing} and pays with {paid} euros. "
        "How much money comes back?",
        f"The {thing} cost {count} * {price} = {total} euros together.",
        f"The change is {paid} - {total} = {paid_extra} euros.",
        answer=f"{paid_extra} euros",
    )


def _linear_equation(rng: random.Random) -> str:
    a, x, b = rng.randint(2, 12), rng.randint(-15, 15), rng.randint(-30, 30)
    c = a * x + b
    sign, size = ("+", b) if b >= 0 else ("-", -b)
    undo = "Subtract" if b >= 0 else "Add"
    preposition = "from" if b >= 0 else "to"
    return _worked(
        f"Solve {a}x {sign} {size} = {c} for x.",
        f"{undo} {size} {preposition} both sides: {a}x = {c - b}.",
        f"Divide both sides by {a}: x = {c - b} / {a} = {x}.",
        answer=f"x = {x}",
    )


def _percentage(rng: random.Random) -> str:
    percent, base = rng.choice((5, 10, 15, 20, 25, 30, 40, 50, 75)), rng.randint(2, 60) * 20
    part = percent * base // 100
    thing, place = rng.choice(THINGS), rng.choice(PLACES)
    return _worked(
        f"A {place} has {base} {thing}, and {percent} percent of them are sold. How many {thing} remain?",
        f"Sold: {base} * {percent} / 100 = {part}.",
        f"Remaining: {base} - {part} = {base - part}.",
        answer=base - part,
    )


def _fraction_sum(rng: random.Random) -> str:
    a, b, c, d = rng.randint(1, 9), rng.randint(2, 12), rng.randint(1, 9), rng.randint(2, 12)
    common = math.lcm(b, d)
    left, right = a * common // b, c * common // d
    divisor = math.gcd(left + right, common)
    return _worked(
        f"Compute {a}/{b} + {c}/{d}.",
        f"The common denominator of {b} and {d} is {common}.",
        f"{a}/{b} = {left}/{common} and {c}/{d} = {right}/{common}.",
        f"The sum is {left + right}/{common}.",
        answer=f"{(left + right) // divisor}/{common // divisor}",
    )


def _rectangle(rng: random.Random) -> str:
    width, height = rng.randint(2, 40), rng.randint(2, 40)
    return _worked(
        f"A rectangle is {width} m wide and {height} m long. What are its area and its perimeter?",
        f"The area is {width} * {height} = {width * height} square metres.",
        f"The perimeter is 2 * ({width} + {height}) = {2 * (width + height)} metres.",
        answer=f"{width * height} square metres and {2 * (width + height)} metres",
    )


def _speed(rng: random.Random) -> str:
    speed, hours = rng.randint(4, 110), rng.randint(2, 9)
    vehicle = rng.choice(("train", "ship", "cyclist", "bus", "walker", "car"))
    return _worked(
        f"A {vehicle} moves at {speed} km/h for {hours} hours. How far does it get?",
        "Distance is speed times time.",
        f"{speed} * {hours} = {speed * hours}.",
        answer=f"{speed * hours} km",
    )


def _arithmetic_series(rng: random.Random) -> str:
    first, step, count = rng.randint(1, 20), rng.randint(1, 9), rng.randint(4, 20)
    last = first + (count - 1) * step
    return _worked(
        f"A sequence starts with {first} and grows by {step} each time. What is the sum of its first {count} terms?",
        f"The last term is {first} + {count - 1} * {step} = {last}.",
        f"The sum is {count} * ({first} + {last}) / 2 = {count * (first + last) // 2}.",
        answer=count * (first + last) // 2,
    )


def _greatest_divisor(rng: random.Random) -> str:
    shared = rng.randint(2, 15)
    a, b = shared * rng.randint(2, 20), shared * rng.randint(2, 20)
    steps, x, y = [], a, b
    while y:
        steps.append(f"{x} = {x // y} * {y} + {x % y}.")
        x, y = y, x % y
    return _worked(f"Find the greatest common divisor of {a} and {b}.", *steps, answer=x)


def _average(rng: random.Random) -> str:
    count, mean = rng.randint(3, 6), rng.randint(5, 60)
    values = [mean + rng.randint(-5, 5) for _ in range(count - 1)]
    values.append(mean * count - sum(values))
    listed = " + ".join(map(str, values))
    return _worked(
        f"What is the average of {', '.join(map(str, values))}?",
        f"The sum is {listed} = {sum(values)}.",
        f"There are {count} numbers, so the average is {sum(values)} / {count} = {mean}.",
        answer=mean,
    )


def _pythagoras(rng: random.Random) -> str:
    m = rng.randint(2, 7)
    n, scale = rng.randint(1, m - 1), rng.randint(1, 4)
    a, b, c = scale * (m * m - n * n), scale * 2 * m * n, scale * (m * m + n * n)
    return _worked(
        f"The legs of a right triangle are {a} cm and {b} cm. How long is the hypotenuse?",
        f"By Pythagoras c^2 = {a}^2 + {b}^2 = {a * a} + {b * b} = {c * c}.",
        f"The square root of {c * c} is {c}.",
        answer=f"{c} cm",
    )
