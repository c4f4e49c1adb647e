"""What finished runs reached: every point has its name, and the front is the best of each cost."""

import pytest
from helpers.pictures import check_texts
from hypothesis import given
from hypothesis import strategies as st

from stl10bench.plots.results import Point, accuracy_against_cost, pareto_front

points = st.builds(
    lambda cost, accuracy: Point("n", cost, accuracy, accuracy, accuracy, True),
    st.floats(0, 1e12),
    st.floats(0, 1),
)


@given(st.lists(points, min_size=1, max_size=12))
def test_the_pareto_front_is_what_no_other_point_surpasses(points: list[Point]) -> None:
    front = [(point.cost, point.accuracy) for point in pareto_front(points)]
    for point in points:
        surpassed = any(
            other.cost <= point.cost
            and other.accuracy >= point.accuracy
            and (other.cost, other.accuracy) != (point.cost, point.accuracy)
            for other in points
        )
        assert ((point.cost, point.accuracy) in front) != surpassed


@pytest.mark.parametrize("width", [7.6, 3.5])
@pytest.mark.parametrize("count", [1, 40])
def test_every_point_has_its_whole_name_however_close_the_points_are(
    width: float, count: int
) -> None:
    points = [
        Point(f"resnet9, channels 64-128-256, lr {n}e-4", 1e6, 0.8, 0.79, 0.81, marked=n % 2 == 0)
        for n in range(count)
    ]
    figure = accuracy_against_cost(points, "MACs, per image", width=width)
    check_texts(figure)
    shown = [text.get_text().replace("\n", " ") for text in figure.axes[0].texts]
    assert sorted(shown) == sorted(point.name for point in points)
