"""Other libraries' names for our options, to guess what was meant.

The names come from timm, Ultralytics, transformers, Lightning and DeiT.
"""

OTHER_NAMES = {
    name: option
    for option, names in {
        "data.train": "data_dir data_path dataset train_dir train_data train_split",
        "data.val": "val_dir validation_dir val_split val_path",
        "data.workers": "j num_workers dataloader_num_workers",
        "data.multi_label": "bce_loss",
        "model.arch": "backbone model_name_or_path",
        "model.weights": "pretrained pretrained_path initial_checkpoint checkpoint",
        "model.image_size": "img_size imgsz input_size resolution size",
        "model.trainable_layers": "freeze",
        "model.pool": "gp global_pool",
        "model.drop_path": "drop_connect drop_path_rate",
        "augment.policy": "aa auto_augment no_aug",
        "augment.crop": "train_crop_mode",
        "augment.interpolation": "train_interpolation",
        "augment.scale_min": "scale",
        "augment.ratio_min": "ratio",
        "augment.hflip": "fliplr",
        "augment.vflip": "flipud",
        "augment.erase_prob": "reprob erasing",
        "augment.erase_mode": "remode",
        "augment.erase_count": "recount",
        "augment.mix_prob": "mixup_prob",
        "augment.mix_switch_prob": "mixup_switch_prob",
        "optim.batch_size": "b bs batch per_gpu_batch_size per_device_train_batch_size train_batch_size",
        "optim.lr": "learning_rate base_lr lr_base lr0",
        "optim.weight_decay": "wd",
        "optim.beta1": "opt_betas",
        "optim.eps": "opt_eps",
        "optim.clip_grad": "max_grad_norm gradient_clip_val",
        "optim.label_smoothing": "smoothing label_smoothing_factor",
        "schedule.epochs": "num_train_epochs num_epochs max_epochs",
        "schedule.min_lr": "lrf",
        "schedule.warmup": "warmup_ratio warmup_steps",
        "ema.decay": "model_ema model_ema_decay",
        "train.run_dir": "o output output_dir project save_dir experiment run_name default_root_dir",
        "train.device": "accelerator gpu gpu_id use_gpu use_cuda",
        "train.amp": "precision fp16 bf16 half amp_dtype apex_amp native_amp model_dtype",
        "train.micro_batch": "grad_accum_steps gradient_accumulation_steps accumulate "
        "gradient_accumulation accumulate_grad_batches accum_iter",
        "train.step": "torchcompile torchcompile_mode torch_compile compile",
        "train.stop_when": "patience patience_epochs early_stopping early_stopping_patience",
        "train.stop_after": "max_time",
        "train.log_every": "log_interval logging_steps log_freq log_every_n_steps print_freq",
        "train.eval_every": "val_interval eval_freq check_val_every_n_epoch",
        "train.checkpoint_steps": "recovery_interval save_steps",
        "train.checkpoint_epochs": "save_freq save_every save_interval save_period",
        "train.keep_checkpoints": "checkpoint_hist save_total_limit",
        "train.tracker": "log_wandb wandb_project report_to",
        "train.eval_crop_pct": "crop_pct",
        "train.eval_image_size": "test_input_size eval_size",
    }.items()
    for name in names.split()
}

# names that no option has, and what to do instead. No similar option is suggested for them
WITHOUT_OPTION = {
    name: advice
    for advice, names in {
        "Run the same command again to continue the run": "resume no_resume_opt start_epoch resume_from_checkpoint",
        "AdamW is the only optimizer": "opt optimizer opt_kwargs momentum",
        "--optim.clip_grad clips gradients by their norm": "clip_mode",
        "The schedule is a cosine after a linear warm-up from 0":
            "sched scheduler lr_scheduler lr_scheduler_type "
            "lr_noise lr_noise_pct lr_noise_std lr_cycle_mul lr_cycle_decay lr_cycle_limit lr_k_decay "
            "warmup_lr warmup_prefix sched_on_updates decay_milestones decay_epochs decay_rate dr cooldown_epochs",
        "The learning rate is not scaled. See --optim.lr": "lr_base_size lr_base_scale",
        "Towers have no dropout. Use --model.drop_path or --model.patch_dropout":
            "drop dropout drop_rate drop_block",
        "Use --augment.policy=3aug": "grayscale_prob gaussian_blur_prob",
        "fastft has no such augmentation": "aug_repeats aug_splits jsd_loss resplit cutmix_minmax mixup_mode",
        "fastft does not train models with BatchNorm": "bn_momentum bn_eps sync_bn dist_bn split_bn",
        "fastft does this by itself. Leave it out":
            "channels_last pin_mem no_prefetcher fuser torchscript use_multi_epochs_loader worker_seeding local_rank "
            "no_ddp_bb synchronize_step device_modules validation_batch_size vb amp_impl model_ema_force_cpu model_ema_warmup",
        "Set --model.drop_path or --model.patch_dropout": "model_kwargs",
        "Class names are read from the data": "class_map",
        "Classes are counted in the training images. Leave it out, or see --data.num_classes":
            "num_classes nb_classes n_classes num_labels classes nc",
        "Runs are counted in epochs. Use --epochs, or --train.stop_after to limit the time":
            "steps num_steps total_steps max_steps max_train_steps train_steps iterations max_iters",
        "Start a process for each GPU: torchrun --nproc-per-node N -m fastft.cli train ...":
            "devices gpus num_gpus n_gpus num_devices num_nodes nproc_per_node world_size strategy ddp distributed",
        "`fastft preview` draws the augmented images": "save_images",
        "The best epoch is chosen by accuracy": "eval_metric metric_for_best_model",
        "Use fastft predict --flip-average": "tta",
    }.items()
    for name in names.split()
}  # fmt: skip
