"""What an epoch of the heads costs on kept sentence vectors, against an epoch that computes the encoder.

`python -m benchmarks.kept [--epochs E] [--rounds N] [key=value]...` trains the quickstart in bf16: one epoch of the
heads, which fills the cache, E epochs of them on what is kept, one epoch of everything. Printed are seconds an epoch,
and the second as a part of the others, as median (least to greatest).
"""

from benchmarks.runs import ours, overrides_of, parser_of, recipe, spread

FILLING, KEPT, ALL = "filling", "kept", "all"


def main() -> None:
    parser = parser_of(str(__doc__))
    parser.add_argument("--epochs", type=int, default=5, help="of the heads on kept vectors (%(default)s)")
    options = parser.parse_intermixed_args()
    lengths = {FILLING: ("heads", 1), KEPT: ("heads", options.epochs), ALL: ("all", 1)}
    phases = [f"{{name: {name}, train: [{unit}], epochs: {epochs}}}" for name, (unit, epochs) in lengths.items()]
    arguments = recipe((), f"phases=[{', '.join(phases)}]", "cache.mode=always", *overrides_of(options))
    epochs: dict[str, list[float]] = {name: [] for name in lengths}
    for _ in range(options.rounds):
        run = ours(arguments, threads=options.threads, gpu=options.gpu)
        for name, (_, length) in lengths.items():
            epochs[name].append(run.phases[name] / length)
    for name, seconds in epochs.items():
        print(f"{name:<8}{spread(seconds, '.3f')} seconds an epoch")
    for name in (FILLING, ALL):
        parts = [100 * kept / other for kept, other in zip(epochs[KEPT], epochs[name], strict=True)]
        print(f"an epoch on kept vectors takes {spread(parts)} % of one of {name!r}")


if __name__ == "__main__":
    main()
