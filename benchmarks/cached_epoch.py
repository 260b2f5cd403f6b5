"""Time of an epoch of the heads on cached sentence vectors, compared with epochs that compute the encoder.

`python -m benchmarks.cached_epoch [--epochs E] [--rounds N] [key=value]...` trains the quickstart in bf16: one epoch of
the heads, which fills the activation cache, E epochs of the heads that read it, and one epoch with everything trained.
Printed are seconds per epoch, and an epoch on cached vectors as a percentage of the other two, as median (minimum to
maximum).
"""

from benchmarks.training_runs import make_parser, recipe_arguments, recipe_overrides, run_mtl_dist, spread

FILLING, CACHED, ALL = "filling", "cached", "all"


def main() -> None:
    parser = make_parser(str(__doc__))
    parser.add_argument("--epochs", type=int, default=5, help="epochs of the heads on cached vectors (%(default)s)")
    options = parser.parse_intermixed_args()
    lengths = {FILLING: ("heads", 1), CACHED: ("heads", options.epochs), ALL: ("all", 1)}
    phases = [f"{{name: {name}, train: [{unit}], epochs: {epochs}}}" for name, (unit, epochs) in lengths.items()]
    arguments = recipe_arguments((), f"phases=[{', '.join(phases)}]", "cache.mode=always", *recipe_overrides(options))
    epochs: dict[str, list[float]] = {name: [] for name in lengths}
    for _ in range(options.rounds):
        run = run_mtl_dist(arguments, threads=options.threads, gpu=options.gpu)
        for name, (_, length) in lengths.items():
            epochs[name].append(run.phases[name] / length)
    for name, seconds in epochs.items():
        print(f"{name:<8}{spread(seconds, '.3f')} seconds per epoch")
    for name in (FILLING, ALL):
        parts = [100 * cached / other for cached, other in zip(epochs[CACHED], epochs[name], strict=True)]
        print(f"an epoch on cached vectors takes {spread(parts)} % of one of {name!r}")


if __name__ == "__main__":
    main()
