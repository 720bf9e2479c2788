"""Train on a folder with one folder of photographs per class, then predict, evaluate, export and report.

python examples/fit.py pics --predict holiday/
"""

import argparse

import fastft


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--predict", metavar="IMAGE", nargs="+", default=[])
    parser.add_argument("--model", default="ViT-B-16-quickgelu")
    parser.add_argument("--weights", default="openai")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--epochs", default="auto")
    args = parser.parse_args()

    run = fastft.fit(
        "photos",
        data=args.data,
        model=args.model,
        weights=args.weights,
        image_size=args.image_size,
        epochs=args.epochs,
        out="runs/fit",
    )
    print(f"top-1 {run.evaluate().top1:.1f} %")
    for prediction in run.predict(args.predict, topk=1):
        print(prediction.path, prediction.error or f"{prediction.classes[0]} {prediction.probabilities[0]:.2f}")
    print(run.export("safetensors", "runs/fit.safetensors"), run.report())


if __name__ == "__main__":  # the conversion starts processes that import this file
    main()
