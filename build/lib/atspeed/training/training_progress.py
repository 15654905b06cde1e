"""Progress of a training on the terminal: one bar, and one line an epoch."""

import sys

from transformers import TrainerCallback

from genrec.runtime.progress import progress_bar


class TrainingProgress(TrainerCallback):
    """In place of the Trainer's own callback, which prints dictionaries and a second bar for each evaluation."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar = progress_bar(state.max_steps, "training", "step", initial=state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "loss" in logs:
            self.bar.set_postfix_str(f"loss {float(logs['loss']):.4f}", refresh=False)

    def on_prediction_step(self, args, state, control, **kwargs):
        if self.bar.postfix != "validation":
            self.bar.set_postfix_str("validation")

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        names = {"eval_loss": "validation loss", "eval_accepted": "accepted levels a round"}
        said = [f"{name} {metrics[key]:.4f}" for key, name in names.items() if key in metrics]
        self.bar.set_postfix_str("", refresh=False)
        line = f"epoch {state.epoch:.0f} of {args.num_train_epochs:.0f}: {', '.join(said)}"
        if state.is_world_process_zero:
            self.bar.write(line, file=sys.stderr)  # where the bar is, so that one does not stand in the other

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()
        if state.is_world_process_zero and state.global_step < state.max_steps:
            print(f"stopped after epoch {state.epoch:.0f}: no better since", file=sys.stderr)
