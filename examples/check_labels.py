"""Find photographs with wrong labels, near-duplicates and outliers, with cleanlab on the embeddings of a model.

pip install 'cleanlab[datalab]'
fastft predict runs/photos runs/photos/data/train.beton --weights probe --features train.npz
fastft predict runs/photos runs/photos/data/val.beton --weights probe --features val.npz
python examples/check_labels.py train.npz val.npz --out suspects.csv
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from cleanlab import Datalab
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

ISSUES = ("label", "near_duplicate", "outlier")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=Path, nargs="+", help="files from fastft predict --features, one per split")
    parser.add_argument("--out", type=Path, default=Path("suspects.csv"))
    args = parser.parse_args()

    parts = [np.load(path) for path in args.features]
    features_ND = np.concatenate([part["features"] for part in parts])
    labels_N = np.concatenate([part["labels"] for part in parts])
    names = [f"{path.stem}: {file}" for path, part in zip(args.features, parts, strict=True) for file in part["files"]]
    classes = parts[0]["classes"]

    # each image is classified by a model that has not seen it
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    folds = StratifiedKFold(min(5, np.bincount(labels_N).min()), shuffle=True, random_state=0)
    probabilities_NK = cross_val_predict(model, features_ND, labels_N, cv=folds, method="predict_proba")

    lab = Datalab({"label": labels_N}, label_name="label", verbosity=0)
    lab.find_issues(features=features_ND, pred_probs=probabilities_NK, issue_types={issue: {} for issue in ISSUES})
    found = lab.get_issues()
    nearest = lab.get_info("near_duplicate")["near_duplicate_sets"]
    with args.out.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["issue", "score", "image", "class", "likely class, or near-duplicates"])
        for issue in ISSUES:
            suspects = found[found[f"is_{issue}_issue"]].sort_values(f"{issue}_score")
            for row, score in suspects[f"{issue}_score"].items():
                likely = classes[probabilities_NK[row].argmax()] if issue == "label" else ""
                others = "; ".join(names[other] for other in nearest[row]) if issue == "near_duplicate" else ""
                table.writerow([issue, f"{score:.4f}", names[row], classes[labels_N[row]], likely or others])
            print(f"{issue}: {len(suspects)} of {len(names)} images")


if __name__ == "__main__":
    main()
