# The generator that comes with the project, made again: called by `make generator`. STREAKS CLEAN FOLDER EPOCHS
set -e
streaks=$1 clean=$2 made=$3 epochs=$4

python for_syn/train_syn_generator.py --streaks "$streaks" --hold_out 20 --niter $epochs --manualSeed 1 \
  --model_dir "$made/G" --log_dir "$made/G_logs"
python for_syn/train_syn_encoder.py --streaks "$streaks" --clean "$clean" --hold_out 20 --manualSeed 1 \
  --netED "$made/G/ED_ema_state_$epochs.pt" --model_dir "$made/RNet" --log_dir "$made/RNet_logs"
cp "$made/RNet/ED_half.pt" "$made/ED.pt"
python experiments/distance.py --real "$streaks" --hold_out 20 --netED "$made/ED.pt" --csv "$made/distance.csv"
python experiments/knobs_report.py --netED "$made/ED.pt" --out "$made"
python for_syn/test_disentanglement.py --netED "$made/ED.pt" --figure generated --save_fake "$made"
python -m common.data.demo --out "$made/photos"
python for_syn/generate_rain.py --netED "$made/ED.pt" --data_path "$made/photos/test/norain" --num 3 \
  --save_path "$made/generated" --overwrite
